"""A task of a fleet and how it ended, as plain records that travel to other machines and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lamina.version import __version__


@dataclass(frozen=True)
class Resources:
    """What one task may use.

    Attributes:
        cpus: Number of CPUs, and of threads.
        gpus: Number of GPUs; None leaves the choice to the executor.
    """

    cpus: int
    gpus: int | None = None


@dataclass(frozen=True)
class Task:
    """A Python command that prints one JSON object as the last line of its stdout, such as `-m lamina train`.

    All paths are absolute, in a file system that every machine of the fleet shares.

    Attributes:
        name: Its name in messages.
        arguments: The interpreter's arguments.
        log: The file that its stderr is appended to.
        directory: Its working directory.
        run: The run directory that it trains into, so that it can be resumed; None if it trains nothing.
        given: Text for its stdin.
        version: The version of lamina that made it; a machine with another refuses it.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    directory: Path
    run: Path | None = None
    given: str = ""
    version: str = field(default=__version__)


@dataclass(frozen=True)
class Ended:
    """How one attempt at a task ended.

    Attributes:
        how: `done`; `failed`, which would happen again; or `lost`: its process or its machine was stopped or killed,
            and another attempt goes on from the last checkpoint.
        printed: The JSON object of a task that is done.
        message: Why it is not done.
        seconds: How long it took.
        host: The machine that it ran on; empty if that is unknown.
    """

    how: Literal["done", "failed", "lost"]
    printed: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    seconds: float = 0.0
    host: str = ""
