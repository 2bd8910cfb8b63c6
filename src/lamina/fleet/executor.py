"""`Executor`: where the tasks of a fleet run. One verb, `submit`; one file an executor in `executors/`.

An executor's file defines `OPTIONS`, a `Section` of what `--option KEY=VALUE` may set, and `start(options, folder)`, a
context manager that gives the executor and ends what it started. Other packages add executors by entry points
(`lamina/plugins.py`) in the group `lamina.executors`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lamina import plugins
from lamina.config.options import read_options
from lamina.config.overrides import read_value
from lamina.errors import ConfigError, Problem, nearest
from lamina.fleet.task import Ended, Resources, Task


class Handle(Protocol):
    """A task that was submitted."""

    def poll(self) -> Ended | None:
        """Returns how the task ended; None while it waits or runs."""
        ...

    def stop(self) -> None:
        """Asks the task to end: training saves a checkpoint. Returns at once."""
        ...


class Executor(Protocol):
    """Where tasks run."""

    def submit(self, task: Task, resources: Resources) -> Handle:
        """Starts a task, or puts it in a queue."""
        ...

    def share(self, jobs: int) -> int:
        """Returns the number of CPUs for each of so many tasks at once; at least 1."""
        ...


@dataclass(frozen=True)
class Placement:
    """Where and how the tasks of a fleet run.

    Attributes:
        on: The executor's name.
        jobs: How many tasks run at once; None: one on this machine, all of them elsewhere.
        cpus: CPUs and threads of a task; None: the executor's CPUs, shared by `jobs`.
        gpus: GPUs of a task; None leaves the choice to the executor.
        retries: How often a task that was lost is submitted again.
        options: The executor's options, as `KEY=VALUE`.
    """

    on: str = "local"
    jobs: int | None = None
    cpus: int | None = None
    gpus: int | None = None
    retries: int = 3
    options: tuple[str, ...] = ()

    def settled(self, executor: Executor, tasks: int) -> Settled:
        """Fills in what was not given, for so many tasks."""
        jobs = max(1, min(self.jobs or (1 if self.on == "local" else tasks), tasks))
        threads = os.environ.get("OMP_NUM_THREADS", "")
        share = executor.share(jobs)
        cpus = self.cpus or (min(share, int(threads)) if threads.isdecimal() and int(threads) else share)
        return Settled(self.on, jobs, Resources(cpus, self.gpus), self.retries)


@dataclass(frozen=True)
class Settled:
    """A placement with everything filled in; see `Placement`."""

    on: str
    jobs: int
    resources: Resources
    retries: int

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {"on": self.on, "jobs": self.jobs, "threads": self.resources.cpus, "gpus": self.resources.gpus}


def check_placement(placement: Placement) -> None:
    """Checks the executor's name and its options, before anything is started.

    Raises:
        ConfigError: There is no such executor, or an option is wrong.
    """
    _read_options(_module(placement.on), placement)


@contextlib.contextmanager
def start_executor(placement: Placement, folder: Path) -> Iterator[Executor]:
    """Gives the executor inside the block, and ends afterwards what it started.

    Args:
        placement: Which executor, and its options.
        folder: The fleet's folder, for what the executor keeps.

    Raises:
        ConfigError: There is no such executor, its package is not installed, or an option is wrong.
        FleetError: Its cluster cannot be reached.
    """
    module = _module(placement.on)
    with module.start(_read_options(module, placement), folder.resolve()) as executor:
        yield executor


def _module(name: str) -> Any:
    known = plugins.members("executors")
    if name not in known and name not in plugins.problems("executors"):
        message = f"{name!r} is not one of {', '.join(known)}."
        raise ConfigError(Problem("--on", message, nearest(name, known)))
    return plugins.load_member("executors", name)


def _read_options(module: Any, placement: Placement) -> Any:
    given: Mapping[str, Any] = {}
    for option in placement.options:
        key, equals, text = option.partition("=")
        if not (key and equals):
            raise ConfigError(Problem("--option", f"{option!r} is not KEY=VALUE", "write such as partition=gpu"))
        given = {**given, key: read_value([key], text, option, module.OPTIONS)}
    return read_options(module.OPTIONS, f"--on {placement.on}", given, "--option")
