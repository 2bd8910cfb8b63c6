"""Runs a task as a process of this machine: what every executor ends up doing, here or on another machine."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import lamina
from lamina.errors import Interrupted, StorageError
from lamina.fleet.task import Ended, Resources, Task
from lamina.runs import Run
from lamina.version import __version__

# Interval in seconds at which a process is looked after.
SECONDS = 0.2
# How long a process has to end by itself before it is killed.
_KILL_SECONDS = 10.0


class TaskProcess:
    """A task that runs as a process of this machine.

    Args:
        task: The task. If its run has begun before, the process resumes it.
        resources: `cpus` is the number of its threads.
        environment: Variables to set, in addition to this process's.

    Raises:
        StorageError: The log cannot be written.
    """

    def __init__(self, task: Task, resources: Resources, environment: Mapping[str, str] | None = None) -> None:
        self._task = task
        self._began = time.perf_counter()
        self._ended: Ended | None = None
        self._asked = False
        begun = task.run is not None and Run(task.run).begun
        arguments = [*task.arguments, *(["--resume"] if begun else [])]
        self._written = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed by poll()
        try:
            task.log.parent.mkdir(parents=True, exist_ok=True)
            with task.log.open("a", encoding="utf-8") as log, tempfile.TemporaryFile("w+", encoding="utf-8") as given:
                given.write(task.given)
                given.seek(0)
                # In its own session: Ctrl-C in the terminal reaches it through this process, once.
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "lamina.fleet.tied", str(os.getpid()), *arguments],
                    cwd=task.directory,
                    stdin=given,
                    stdout=self._written,
                    stderr=log,
                    env=_environment(resources) | dict(environment or {}),
                    start_new_session=True,
                )
        except OSError as error:
            self._written.close()
            raise StorageError.wrap(error, task.log, "writing") from error

    def poll(self) -> Ended | None:
        """Returns how it ended; None while it runs."""
        code = self._process.poll()
        if self._ended is None and code is not None:
            self._ended = self._read(code)
        return self._ended

    def stop(self) -> None:
        """Asks it to end: training saves a checkpoint. Asked twice, it ends at once."""
        self._asked = True
        self._process.terminate()

    def wait(self) -> Ended:
        """Waits for its end."""
        while (ended := self.poll()) is None:
            time.sleep(SECONDS)
        return ended

    def end(self) -> None:
        """Ends it for good, before this process leaves; it has some seconds to save a checkpoint."""
        if self._process.poll() is None:
            if not self._asked:
                self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_KILL_SECONDS)
            self._process.kill()
            self._process.wait()
        self._written.close()

    def _read(self, code: int) -> Ended:
        with self._written as file:
            file.seek(0)
            lines = [line for line in file.read().splitlines() if line.startswith("{")]
        seconds, host = time.perf_counter() - self._began, socket.gethostname()
        if code == 0 and lines:
            return Ended("done", json.loads(lines[-1]), seconds=seconds, host=host)
        how = "lost" if code < 0 or code > 128 or code == Interrupted.exit_code else "failed"
        return Ended(how, message=self._why(code, lines), seconds=seconds, host=host)

    def _why(self, code: int, lines: list[str]) -> str:
        if code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            return f"its process was killed by signal {number} (9 is how Linux ends one that takes too much memory)"
        if lines:
            return str(json.loads(lines[-1]).get("error", {}).get("message", lines[-1]))
        log = self._task.log.read_text(encoding="utf-8", errors="replace")
        said = [line.strip() for line in log.splitlines() if line.strip()]
        return said[-1][:500] if said else f"exit code {code}"


def run_task(
    task: Task,
    resources: Resources,
    environment: Mapping[str, str] | None = None,
    started: Callable[[TaskProcess], None] = lambda process: None,
) -> Ended:
    """Runs a task on the machine that this is called on, to its end.

    Args:
        task: The task.
        resources: What it may use.
        environment: Variables to set, in addition to this process's.
        started: Called with its process.
    """
    host = socket.gethostname()
    if task.version != __version__:
        return Ended("failed", message=f"{host} has lamina {__version__}, and this one is {task.version}", host=host)
    missing = [path for path in (task.directory, *_files(task)) if not path.exists()]
    if missing:
        message = f"{host} does not see {missing[0]}: a fleet needs a folder that all of its machines share"
        return Ended("failed", message=message, host=host)
    process = TaskProcess(task, resources, environment)
    started(process)
    try:
        return process.wait()
    except BaseException:  # this process is told to stop; the task saves a checkpoint
        process.stop()
        process.wait()
        raise


def _files(task: Task) -> list[Path]:
    return [Path(each) for each in task.arguments if each.endswith(".yaml")]


def _environment(resources: Resources) -> dict[str, str]:
    """Copies the environment, makes this installation of lamina importable, and sets the number of threads."""
    source = str(Path(lamina.__file__).parents[1])
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part)
    threads = {name: str(resources.cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**os.environ, **threads, "PYTHONPATH": path}
