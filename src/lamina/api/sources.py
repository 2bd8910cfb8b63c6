"""Training and evaluation data as `lamina.train` takes them: which of them are paths, and which are rows to store."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lamina.api.rows import Formatting, is_column, is_columns, store_rows
from lamina.config.named import names_data
from lamina.data.read.open import read_rows
from lamina.data.read.splits import kind_of
from lamina.errors import ConfigError, Problem

# Texts in a list that are names: shorter than this, and a file or a data set on the hub.
_LONGEST_NAME = 1000
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?:/[\w.-]+)?(?::[\w\[\]%:-]+)?")

# Stores rows under a name, and returns the path that the configuration names.
Store = Callable[[object, str], str]


@dataclass(frozen=True)
class Sources:
    """What `data` and `eval_data` are.

    Attributes:
        train: A path, a list of paths or sections, or rows; `NOT_GIVEN` to leave it as it is.
        eval: A path, a share, None for no evaluation, rows, or several of these by name; `NOT_GIVEN` for the default.
        section: A whole `data:` section, if that was given.
    """

    train: Any
    eval: Any
    section: dict[str, Any] | None = None


class _NotGiven:
    def __repr__(self) -> str:
        return "not given"


NOT_GIVEN: Any = _NotGiven()


def find_sources(data: Any, eval_data: Any) -> Sources:
    """Sorts out what was given.

    Raises:
        ConfigError: A dictionary of splits has none to train on.
    """
    if not isinstance(data, Mapping) or (is_columns(data) and not all(kind_of(str(name)) for name in data)):
        return Sources(data, eval_data)
    if _names_files(data):
        return Sources([data], eval_data)
    if "train" in data and _names_files(data["train"]):
        section = dict(data)
        own = section.pop("eval", NOT_GIVEN)
        return Sources(section.pop("train"), own if eval_data is NOT_GIVEN else eval_data, section)
    splits = {name: kind_of(str(name)) for name in data}
    train = next((name for name, kind in splits.items() if kind == "train"), None)
    if train is None:
        raise ConfigError(_no_split(data))
    held_out = [name for kind in ("validation", "test") for name, found in splits.items() if found == kind]
    if eval_data is NOT_GIVEN and held_out:
        eval_data = data[held_out[0]]
    return Sources(data[train], eval_data)


def _no_split(data: Mapping[Any, Any]) -> Problem:
    """Says what a dictionary that is neither columns nor splits may be."""
    names = ", ".join(map(repr, data)) or "nothing"
    if all(map(is_column, data.values())) and len({len(column) for column in data.values()}) > 1:
        lengths = ", ".join(f"{name!r} {len(column)}" for name, column in data.items())
        return Problem("data", f"has columns of different lengths: {lengths}", "give each row a value of each column")
    if any(isinstance(value, str | int | float) for value in data.values()):
        return Problem(
            "data",
            f"is a dictionary with {names}: one row, or a part of the data's settings",
            "put rows in a list: data=[{...}]",
        )
    return Problem("data", f"has {names}, and no split to train on", "name one of them 'train'")


def stored(sources: Sources, store: Store, formatting: Formatting | None) -> dict[str, Any]:
    """Returns the `train` and `eval` of a `data:` section, with rows stored and named by their paths.

    Args:
        sources: What was given.
        store: Stores rows.
        formatting: Makes a text, a conversation or another row of each row, also of a file's.
    """
    values: dict[str, Any] = {}
    if sources.train is not NOT_GIVEN:
        values["train"] = _stored(sources.train, store, "train", formatting)
    if sources.eval is not NOT_GIVEN:
        values["eval"] = _stored_eval(sources.eval, store, formatting)
    return values


def _stored_eval(given: Any, store: Store, formatting: Formatting | None) -> Any:
    if given is None or isinstance(given, int | float):
        return given
    if isinstance(given, Real):  # a number of NumPy's
        return int(given) if isinstance(given, Integral) else float(given)
    if isinstance(given, Mapping) and not is_columns(given) and "path" not in given:
        return {str(name): _stored(each, store, f"eval-{name}", formatting) for name, each in given.items()}
    return _stored(given, store, "eval", formatting)


def _stored(given: Any, store: Store, name: str, formatting: Formatting | None) -> Any:
    if not _names_files(given):
        return store(given, name)
    if formatting is None:
        return _as_text(given)
    paths = given if isinstance(given, list | tuple) else [given]
    if any(isinstance(path, Mapping) for path in paths):
        message = "formatting_func goes over the rows of files, and one of them is given with settings"
        raise ConfigError(Problem("data", message, "give the paths alone, or rows in memory"))
    return store((row for path in paths for row in read_rows(str(path), "data")), name)


def _names_files(given: Any) -> bool:
    """Whether something is a path, or a list of paths and of sections with a path."""
    if isinstance(given, str | Path):
        return True
    if isinstance(given, Mapping):
        return isinstance(given.get("path"), str | Path)
    # A list of texts is a list of documents; one of paths has `Path`s, or files that are there.
    return isinstance(given, list | tuple) and bool(given) and all(map(_is_source, given))


def _is_source(item: Any) -> bool:
    if isinstance(item, str):  # what looks like the name of data is one, also if it is not there: the error says so
        is_short = len(item) < _LONGEST_NAME and "\n" not in item
        return is_short and (names_data(item) or _HUB_ID.fullmatch(item) is not None or Path(item).exists())
    return isinstance(item, Path) or (isinstance(item, Mapping) and isinstance(item.get("path"), str | Path))


def _as_text(given: Any) -> Any:
    if isinstance(given, list | tuple):
        return [_as_text(item) for item in given]
    if isinstance(given, Mapping):
        return {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    return str(given)


def rows_store(folder: Path, formatting: Formatting | None) -> Store:
    """Returns a function that stores rows in a folder."""
    return lambda rows, name: str(store_rows(rows, folder, name, formatting))


def only_names(folder: Path, formatting: Formatting | None) -> Store:
    """Returns a function that stores nothing and reads nothing, to check a configuration before."""
    return lambda rows, name: str(folder / f"{name}.jsonl")
