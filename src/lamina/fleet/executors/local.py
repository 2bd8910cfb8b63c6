"""`--on local`: processes of this machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from lamina.config.section import Section
from lamina.errors import ConfigError, Problem
from lamina.fleet.process import TaskProcess
from lamina.fleet.task import Ended, Resources, Task


class LocalOptions(Section):
    """There are none."""


OPTIONS = LocalOptions


class LocalExecutor:
    """Starts each task at once, on GPUs of its own; if no number of them is given, on the one with the fewest tasks."""

    def __init__(self) -> None:
        self._gpus = _visible_gpus()
        self._handles: list[_LocalHandle] = []

    def submit(self, task: Task, resources: Resources) -> _LocalHandle:
        """Starts a task.

        Raises:
            ConfigError: There are not so many GPUs.
        """
        gpus = self._choose(resources.gpus)
        environment = {} if resources.gpus is None and not gpus else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        handle = _LocalHandle(TaskProcess(task, resources, environment), gpus)
        self._handles.append(handle)
        return handle

    def _choose(self, wanted: int | None) -> list[str]:
        """Returns free GPUs, so many; or, if it does not matter, the one with the fewest tasks."""
        taken = [gpu for handle in self._handles if handle.poll() is None for gpu in handle.gpus]
        if wanted is None:
            return sorted(self._gpus, key=taken.count)[:1]
        free = [gpu for gpu in self._gpus if gpu not in taken]
        if wanted > len(free):
            message = f"a task gets {wanted}, but {len(free)} of the {len(self._gpus)} GPUs of this machine are free"
            raise ConfigError(Problem("--gpus", message, "give fewer, or a smaller --jobs"))
        return free[:wanted]

    def share(self, jobs: int) -> int:
        """Returns the physical cores that this process may use, shared by `jobs`."""
        return max(1, usable_cores() // jobs)

    def end(self) -> None:
        """Ends all tasks that still run."""
        for handle in self._handles:
            handle.end()


class _LocalHandle:
    """A task, and the GPUs that it holds while it runs."""

    def __init__(self, process: TaskProcess, gpus: list[str]) -> None:
        self._process = process
        self.gpus = gpus

    def poll(self) -> Ended | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.stop()

    def end(self) -> None:
        self._process.end()


@contextlib.contextmanager
def start(options: LocalOptions, folder: Path) -> Iterator[LocalExecutor]:
    """Gives the executor; no task outlives the block."""
    executor = LocalExecutor()
    try:
        yield executor
    finally:
        executor.end()


def usable_cores() -> int:
    """Returns the number of physical cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)


def _visible_gpus() -> list[str]:
    """Returns the NVIDIA GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    places = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((place[1] for place in places if place), key=int)
