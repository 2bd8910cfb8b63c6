"""Where the paths in a configuration lead: those in a run's own `config.yaml` do so from anywhere.

A run keeps its paths as they were given, often relative, so that a project may move as a whole. Its manifest says which
folder they start from, and where the run lay then; so they are found from another working directory, and after run and
project have moved together. What is found is checked by digest where it counts (`training/setup.py`,
`adapters/load.py`).
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

CONFIG_FILE = "config.yaml"
MANIFEST_FILE = "manifest.json"
_MAGIC = frozenset("*?[")


@dataclass(frozen=True)
class Origin:
    """Where a run was started, and by what.

    Attributes:
        lamina: The version that trained it last.
        directory: The folder that its relative paths start from; None if that was not recorded.
        path: Where the run lay then.
    """

    lamina: str
    directory: str | None
    path: str | None


def read_origin(run: Path) -> Origin | None:
    """What the manifest in that folder says of the run's origin; None if it is no run."""
    try:
        manifest = json.loads((run / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or "lamina" not in manifest:
        return None
    directory, path = (value if isinstance(value := manifest.get(key), str) else None for key in ("directory", "path"))
    return Origin(str(manifest["lamina"]), directory, path)


def own_run(config: Path) -> Origin | None:
    """The origin of the run whose own configuration `config` is; None if it is no run's own."""
    return read_origin(config.parent) if config.name == CONFIG_FILE else None


def at_home(values: Mapping[str, Any], run: Path, origin: Origin) -> dict[str, Any]:
    """A run's own configuration, with the places that it names as they are seen from here."""
    folders = start_folders(run, origin)
    return {**map_paths(values, lambda field, path: find_from(path, folders)), "output_dir": str(run)}


def start_folders(run: Path, origin: Origin | None) -> list[Path]:
    """The folders that a run's relative paths may start from, the likeliest first; none if it has no origin."""
    if origin is None or origin.directory is None or origin.path is None:
        return []
    moved_along = os.path.normpath(run.resolve() / os.path.relpath(origin.directory, origin.path))
    return [Path(origin.directory), Path(moved_along)]


def find_from(path: str, folders: Sequence[Path]) -> str:
    """The path, from the first of the folders where something is there; as it is if nothing is, or if it needs none."""
    if Path(path).is_absolute() or path.startswith("~"):
        return path
    for folder in folders:
        if _is_there(str(folder / path)):
            return path if folder == Path.cwd() else str(folder / path)
    return path


def made_absolute(path: str) -> str:
    """What is there by that name, in a way that holds everywhere on this machine; a name of nothing as it is."""
    return os.path.abspath(path) if _is_there(path) else path  # noqa: PTH100 - a link stays one


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists() or bool(_MAGIC & set(path) and glob.glob(path, recursive=True))  # noqa: PTH207
    except (OSError, ValueError):  # what no file can be called
        return False


def map_paths(values: Mapping[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """A configuration with each of its paths put through `change`, which is given the field's name and the path.

    Names that are no paths stay as they are: aliases of models, built-in templates. Names of the hub cannot be told
    from paths, and `change` is given them too.
    """
    mapped = {**values}
    if isinstance(model := mapped.get("model"), str) and model not in ALIASES:
        mapped["model"] = change("model", model)
    if isinstance(mapped.get("data"), Mapping):
        data = mapped["data"] = {**mapped["data"]}
        if "train" in data:
            data["train"] = _map_sources(data["train"], change)
        if isinstance(data.get("eval"), str):
            data["eval"] = change("data.eval", data["eval"])
        if isinstance(replay := data.get("replay"), Mapping) and isinstance(replay.get("path"), str):
            data["replay"] = {**replay, "path": change("data.replay.path", replay["path"])}
        if isinstance(template := data.get("chat_template"), str) and is_template_file(template):
            data["chat_template"] = change("data.chat_template", template)
    return mapped


def is_template_file(name: str) -> bool:
    """Whether `data.chat_template` names a file, and not a built-in template."""
    return "/" in name or "\\" in name or name.endswith((".jinja", ".j2"))


def _map_sources(train: Any, change: Callable[[str, str], str]) -> Any:
    if isinstance(train, str):
        return change("data.train", train)
    if isinstance(train, list):
        return [_map_sources(source, change) for source in train]
    if isinstance(train, Mapping) and isinstance(train.get("path"), str):
        return {**train, "path": change("data.train", train["path"])}
    return train
