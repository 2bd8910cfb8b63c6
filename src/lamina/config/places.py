"""Resolves the paths in a configuration; those in a run's own `config.yaml` work from any working directory.

A run keeps its paths as they were given, often relative, so that a project can be moved as a whole. Its manifest
records the folder that they start from and where the run directory was. The paths can therefore be found from another
working directory, and after run and project have been moved together. Where it matters, what is found is verified by
digest (`training/setup.py`, `adapters/load.py`).
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.config.aliases import ALIASES
from lamina.config.shorthand import is_data_file
from lamina.errors import ConfigError, Problem

CONFIG_FILE = "config.yaml"
MANIFEST_FILE = "manifest.json"
_MAGIC = frozenset("*?[")

# The fix of a path that does not exist.
LOOKED = "check the path; a relative one starts in the working folder, or else beside the YAML file that has it"


@dataclass(frozen=True)
class Origin:
    """Where a run was started, and by what.

    Attributes:
        lamina: The version that trained it last.
        directory: The folder that its relative paths start from; None if that was not recorded.
        path: Path of the run directory then.
    """

    lamina: str
    directory: str | None
    path: str | None


def read_origin(run: Path) -> Origin | None:
    """Returns the origin of the run in a folder, from its manifest; None if there is no run."""
    try:
        manifest = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or "lamina" not in manifest:
        return None
    directory, path = (value if isinstance(value := manifest.get(key), str) else None for key in ("directory", "path"))
    return Origin(str(manifest["lamina"]), directory, path)


def own_run(config: Path) -> Origin | None:
    """Returns the origin of the run whose own configuration `config` is; None if it belongs to no run."""
    return read_origin(config.parent) if config.name == CONFIG_FILE else None


def at_home(values: Mapping[str, Any], run: Path, origin: Origin) -> dict[str, Any]:
    """Returns a run's own configuration with its paths resolved from the current working directory."""
    folders = start_folders(run, origin)
    find = lambda field, path: inside_run(path, run, origin) or find_from(path, folders)  # noqa: E731
    return {**map_paths(values, find), "output_dir": str(run)}


def inside_run(path: str, run: Path, origin: Origin | None) -> str:
    """Returns where a path is now that was within the run directory; empty if it was not, or is not there."""
    if origin is None or origin.directory is None or origin.path is None:
        return ""
    within = os.path.relpath(os.path.normpath(Path(origin.directory, path)), origin.path)
    now = run / within
    return "" if within.startswith(os.pardir) or not now.exists() else str(now)


def start_folders(run: Path, origin: Origin | None) -> list[Path]:
    """Returns the folders that a run's relative paths may start from, most likely first; empty without an origin."""
    if origin is None or origin.directory is None or origin.path is None:
        return []
    moved_along = os.path.normpath(run.resolve() / os.path.relpath(origin.directory, origin.path))
    return [Path(origin.directory), Path(moved_along)]


def find_from(path: str, folders: Sequence[Path]) -> str:
    """Returns the path below the first folder in which it exists; unchanged if it exists in none, or is absolute."""
    if Path(path).is_absolute() or path.startswith("~"):
        return path
    for folder in folders:
        if _is_there(str(folder / path)):
            return path if folder == Path.cwd() else str(folder / path)
    return path


def expand_home(path: str) -> str:
    """Returns a path with `~` and `~user` replaced by the home folder."""
    return os.path.expanduser(path) if path.startswith("~") else path  # noqa: PTH111 - unknown users stay as they are


def find_near(path: str, folder: Path) -> str:
    """Returns a relative path as it is if it exists from here, and else below `folder`, if it exists there."""
    if Path(path).is_absolute() or path.startswith("~") or _is_there(path) or folder == Path():
        return path
    return str(folder / path) if _is_there(str(folder / path)) else path


def check_files(values: Mapping[str, Any]) -> None:
    """Checks that data files exist, without reading them. Names that may be something else are left alone: folders and
    their splits, patterns, and data sets on the hub.

    Args:
        values: A configuration as plain data.

    Raises:
        ConfigError: Files do not exist; all of them are listed.
    """
    missing: list[Problem] = []

    def look(field: str, path: str) -> str:
        if field.startswith("data.") and is_data_file(path) and not _is_there(path) and not _MAGIC & set(path):
            missing.append(Problem(field, f"{path} does not exist", LOOKED))
        return path

    map_paths(values, look)
    if missing:
        raise ConfigError(missing)


def made_absolute(path: str) -> str:
    """Returns the absolute path of an existing file or folder; any other name unchanged."""
    return os.path.abspath(path) if _is_there(path) else path  # noqa: PTH100 - keeps symbolic links


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists() or bool(_MAGIC & set(path) and glob.glob(path, recursive=True))  # noqa: PTH207
    except (OSError, ValueError):  # not a valid file name
        return False


def map_paths(values: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """Returns a copy of a configuration with `change(field, path)` applied to each of its paths.

    Names that are not paths stay unchanged: model aliases, built-in templates. Hub ids look like paths, so `change`
    gets them too.
    """
    mapped = {**values}
    if isinstance(model := mapped.get("model"), str) and model not in ALIASES:
        mapped["model"] = change("model", model)
    if isinstance(method := mapped.get("method"), Mapping) and isinstance(method.get("from"), str):
        mapped["method"] = {**method, "from": change("method.from", method["from"])}
    if isinstance(loss := mapped.get("loss"), Mapping):
        named = [name for name in ("teacher", "teacher_prompt") if isinstance(loss.get(name), str)]
        named = [name for name in named if name != "teacher" or loss[name] not in ALIASES]
        mapped["loss"] = {**loss, **{name: change(f"loss.{name}", loss[name]) for name in named}}
    if isinstance(mapped.get("data"), Mapping):
        data = mapped["data"] = {**mapped["data"]}
        if "train" in data:
            data["train"] = _map_sources(data["train"], change)
        if isinstance(data.get("eval"), str):
            data["eval"] = change("data.eval", data["eval"])
        elif isinstance(named := data.get("eval"), Mapping):
            data["eval"] = {name: _map_source(source, f"data.eval.{name}", change) for name, source in named.items()}
        if isinstance(replay := data.get("replay"), Mapping) and isinstance(replay.get("path"), str):
            data["replay"] = {**replay, "path": change("data.replay.path", replay["path"])}
        if isinstance(template := data.get("chat_template"), str) and is_template_file(template):
            data["chat_template"] = change("data.chat_template", template)
    return mapped


def is_template_file(name: str) -> bool:
    """Returns whether `data.chat_template` is a file rather than a built-in template or a text."""
    return not is_template_text(name) and ("/" in name or "\\" in name or name.endswith((".jinja", ".j2")))


def is_template_text(name: str) -> bool:
    """Returns whether `data.chat_template` is a Jinja text itself."""
    return "{{" in name or "{%" in name


def _map_sources(train: Any, change: Callable[[str, str], str]) -> Any:
    if isinstance(train, list):
        return [_map_sources(source, change) for source in train]
    return _map_source(train, "data.train", change)


def _map_source(source: Any, field: str, change: Callable[[str, str], str]) -> Any:
    if isinstance(source, str):
        return change(field, source)
    if isinstance(source, Mapping) and isinstance(source.get("path"), str):
        return {**source, "path": change(field, source["path"])}
    return source
