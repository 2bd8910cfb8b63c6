"""An executor that runs each task when it is submitted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lamina.config.section import Section
from lamina.fleet.process import run_task
from lamina.fleet.task import Ended, Resources, Task


class Options(Section):
    """What `--option` may set."""

    cpus: int = 1
    """CPUs of a task."""


OPTIONS = Options


@dataclass
class Handle:
    """A task that has ended."""

    ended: Ended

    def poll(self) -> Ended:
        return self.ended

    def stop(self) -> None:
        pass


class InTurn:
    """Runs tasks on this machine, one after another."""

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus

    def submit(self, task: Task, resources: Resources) -> Handle:
        return Handle(run_task(task, resources))

    def share(self, jobs: int) -> int:
        return self._cpus


@contextlib.contextmanager
def start(options: Options, folder: Path) -> Iterator[InTurn]:
    """Gives the executor."""
    yield InTurn(options.cpus)
