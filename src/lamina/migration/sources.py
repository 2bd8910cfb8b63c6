"""Data sets of other libraries as lamina's sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NO_DATA = "it names no data: `lamina train FILE data.train=DATA` does, or `data` in the translated file"

_SLICE = re.compile(r"(?P<name>[\w.\-]*)\[:(?P<end>\d+)(?P<percent>%?)\]")


def hub_path(name: str, configuration: str | None = None, split: str | None = None) -> str:
    """Returns the path of a data set on the hub, or of a folder, as `data.train` has it.

    >>> hub_path("user/rows", "en", "test")
    'user/rows/en:test'
    """
    path = name if not configuration or configuration == "default" else f"{name}/{configuration}"
    return f"{path}:{split}" if split and split != "train" else path


def sliced(split: str | None) -> tuple[str | None, dict[str, Any]]:
    """Returns the split without its slice, and the settings of a source that stand for the slice.

    >>> sliced("train[:500]"), sliced("train[:20%]")
    (('train', {'max_rows': 500}), ('train', {'weight': 0.2}))

    Raises:
        ValueError: It is a slice of another form.
    """
    if split is None or "[" not in split:
        return split, {}
    match = _SLICE.fullmatch(split.strip())
    if match is None:
        raise ValueError(f"the slice {split!r} has no counterpart; `max_rows` takes the first rows, `weight` a share")
    end = int(match["end"])
    if match["percent"]:
        return match["name"], {"weight": end / 100} if end < 100 else {}
    return match["name"], {"max_rows": end}


def source(path: str, **settings: Any) -> str | dict[str, Any]:
    """Returns one source of `data.train`: a path, or a section if it has settings of its own."""
    given = {name: value for name, value in settings.items() if value not in (None, {}, 1.0)}
    return {"path": path, **given} if given else path


def simplified(sources: list[str | dict[str, Any]]) -> dict[str, Any]:
    """Returns the dotted keys of `data` for a list of sources, as short as they can be."""
    if len(sources) != 1:
        return {"data.train": sources}
    (only,) = sources
    if isinstance(only, str) or not set(only) <= {"path", "format", "columns", "max_rows"}:
        return {"data.train": only if isinstance(only, str) else [only]}
    return {"data.train": only["path"], **{f"data.{name}": only[name] for name in only if name != "path"}}


def evaluation_sets(sources: Mapping[str, str | dict[str, Any]]) -> str | dict[str, Any]:
    """Returns `data.eval` for sources by name: a path if there is one, or several sets by name."""
    listed = {
        re.sub(r"[^\w.-]+", "-", name): only if isinstance(only, str) else _readable(only)
        for name, only in sources.items()
    }
    only, *others = listed.values()
    return only if isinstance(only, str) and not others else listed


def _readable(given: Mapping[str, Any]) -> str | dict[str, Any]:
    kept = {name: given[name] for name in ("path", "format", "columns") if name in given}
    return kept if len(kept) > 1 else str(kept["path"])


def first_names(given: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Returns a column mapping: lamina's field -> column, for those columns that are given.

    Args:
        given: What the other library maps: its name of a field -> column.
        names: Its name of a field -> lamina's field.
    """
    return {field: str(given[name]) for name, field in names.items() if given.get(name)}
