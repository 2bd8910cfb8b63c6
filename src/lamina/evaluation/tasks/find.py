"""Finds the tasks that a user names: files, and those that are built in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lamina.config.sections import read_section_file
from lamina.config.tasks import TaskConfig
from lamina.errors import ConfigError, Problem, nearest

_BUILTIN = Path(str(resources.files("lamina.evaluation.tasks"))) / "builtin"

# The smallest task.
_BEGINS = "{name: mine, data: test.jsonl, scorers: [exact_match]}"


@dataclass(frozen=True)
class Task:
    """A task, and where its relative paths start.

    Attributes:
        config: Its settings.
        folder: The folder of its file; None for the working directory.
    """

    config: TaskConfig
    folder: Path | None = None

    @property
    def name(self) -> str:
        """What tables, files and gates call it."""
        return self.config.name

    @property
    def data(self) -> str:
        """Its data, as seen from the working directory."""
        return self.path(self.config.data)

    @property
    def digest(self) -> str:
        """SHA-256 of its settings, wherever its files are; the digests of its rows stand for their content."""
        settings = self.config.model_dump(mode="json", exclude={"data", "limit"})
        return "sha256:" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def path(self, text: str) -> str:
        """A path of its file, as seen from the working directory."""
        if self.folder is None or Path(text).expanduser().is_absolute():
            return text
        place = self.folder / text
        return str(place) if place.exists() or not Path(text).exists() else text

    def changed(self, **changes: Any) -> Task:
        """The same task with other settings; None stands for what is not changed."""
        given = {name: value for name, value in changes.items() if value is not None}
        return Task(self.config.model_copy(update=given), self.folder) if given else self


def find_tasks(names: Sequence[str], field: str = "--task", folder: Path | None = None) -> list[Task]:
    """Reads tasks.

    Args:
        names: Files, or names of built-in tasks.
        field: The option that named them, for errors.
        folder: Where relative paths of files start; None for the working directory.

    Raises:
        ConfigError: There is none of a name, its settings are not allowed, or two have the same name.
    """
    tasks = [_find(name, field, folder) for name in dict.fromkeys(names)]
    by_name: dict[str, str] = {}
    for task, name in zip(tasks, dict.fromkeys(names), strict=True):
        if task.name in by_name:
            message = f"{by_name[task.name]} and {name} both have the name {task.name!r}"
            raise ConfigError(Problem(field, message, "rename one"))
        by_name[task.name] = name
    return tasks


def builtin_tasks() -> list[str]:
    """Names of the tasks that come with lamina."""
    return sorted(path.stem for path in _BUILTIN.glob("*.yaml"))


def task_of_data(data: str, scorers: Sequence[str | Mapping[str, Any]], columns: Mapping[str, str] | None) -> Task:
    """The task of a data file that has no YAML file: lamina's own formats, and the scorers that were named."""
    stem = Path(data).name.partition(".")[0]
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in stem.split(":")[0])
    name = name.lstrip("-_") or "data"
    named = [scorer if isinstance(scorer, str) else dict(scorer) for scorer in scorers]
    config = TaskConfig(
        name=name if name.isascii() and name != "general" else f"task-{len(name)}",
        data=data,
        scorers=list(named or ["exact_match"]),
        columns=dict(columns) if columns else None,
    )
    return Task(config)


def _find(name: str, field: str, folder: Path | None) -> Task:
    if name in builtin_tasks():
        path = _BUILTIN / f"{name}.yaml"
    else:
        path = Path(name).expanduser()
        if folder is not None and not path.is_absolute() and (folder / path).exists():
            path = folder / path
        if path.suffix not in (".yaml", ".yml") and not path.is_file():
            known = builtin_tasks()
            message = f"{name!r} is neither a file nor one of the built-in tasks: {', '.join(known)}."
            raise ConfigError(Problem(field, message, nearest(name, known) or "name a .yaml file"))
    return Task(read_section_file(TaskConfig, path, field, _BEGINS), path.parent)
