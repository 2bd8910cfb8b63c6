"""What the tests of fleets share: tasks that are a line of Python, an executor without processes, and small runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lamina.fleet.executor import Placement
from lamina.fleet.fleet import FleetReport, build_members, run_fleet
from lamina.fleet.task import Ended, Resources, Task
from tests.support.cli import ROWS, write_rows


def python_task(folder: Path, code: str, name: str = "task", given: str = "") -> Task:
    """A task that runs Python code."""
    return Task(name, ("-c", code), folder / "logs" / f"{name}.log", folder, given=given)


class Scripted:
    """An executor without processes: each task ends as its script says, attempt by attempt.

    Attributes:
        ends: The attempts' ends by the task's name; after the last one, a task is done.
        submitted: The names of all attempts, in order.
        most: The largest number of tasks that ran at once.
        stopped: The names of tasks that were asked to stop.
    """

    def __init__(self, ends: dict[str, list[Ended]] | None = None, *, polls: int = 1) -> None:
        self.ends = {name: list(attempts) for name, attempts in (ends or {}).items()}
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.running: set[str] = set()
        self.most = 0
        self.polls = polls

    def submit(self, task: Task, resources: Resources) -> ScriptedHandle:
        self.submitted.append(task.name)
        self.running.add(task.name)
        self.most = max(self.most, len(self.running))
        left = self.ends.get(task.name, [])
        return ScriptedHandle(self, task.name, left.pop(0) if left else Ended("done", {"name": task.name}))

    def share(self, jobs: int) -> int:
        return max(1, 8 // jobs)


class ScriptedHandle:
    """An attempt that ends after some polls, or when it is asked to stop."""

    def __init__(self, executor: Scripted, name: str, ended: Ended) -> None:
        self.executor, self.name, self.ended = executor, name, ended
        self.left = executor.polls

    def poll(self) -> Ended | None:
        self.left -= 1
        if self.left > 0:
            return None
        self.executor.running.discard(self.name)
        return self.ended

    def stop(self) -> None:
        self.executor.stopped.append(self.name)
        self.ended, self.left = Ended("lost", message="stopped"), 1


def write_configs(folder: Path, model: Path, ranks: Sequence[int], steps: int = 12) -> list[str]:
    """Writes a configuration for each rank, of short runs with a checkpoint after every step."""
    rows = write_rows(folder / "rows.jsonl", ROWS)
    paths = [folder / f"r{rank}.yaml" for rank in ranks]
    for path, rank in zip(paths, ranks, strict=True):
        path.write_text(
            f"""
model: {model}
data: {{train: {rows}, eval: 0.2, max_length: 64}}
method: {{r: {rank}, lora_dropout: 0.1}}
train: {{max_steps: {steps}, learning_rate: 1e-2, save_steps: 1, compile: false}}
dtype: float32
output_dir: {folder}/alone/r{rank}
""",
            encoding="utf-8",
        )
    return [str(path) for path in paths]


def train_fleet(paths: Sequence[str], out: Path, placement: Placement) -> tuple[FleetReport, list[str]]:
    """Trains configurations; returns the table and what was said."""
    said: list[str] = []
    report = run_fleet(build_members(paths, [], out), out, placement, said.append)
    return report, said


def digests(report: FleetReport) -> list[str | None]:
    """The adapters' digests, in order."""
    return [row.adapter_digest for row in report.rows]


def when_trained(run: Path, step: int, act: Callable[[int], None]) -> threading.Thread:
    """Calls `act` with the id of the process that trains a run, once it has taken so many steps."""

    def watch() -> None:
        log = run / "metrics.jsonl"
        while True:
            lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
            steps = [line for line in lines if line.startswith('{"event": "step"')]
            if len(steps) >= step and (found := _trainer(run)):
                act(found)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def _trainer(run: Path) -> int | None:
    """The process that trains into a folder, by the configuration in its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        stem = os.fsencode(f"/{run.name}.yaml")
        if b"train" in words and b"lamina.fleet.tied" not in words and any(word.endswith(stem) for word in words):
            return int(folder.name)
    return None


def kill(process: int) -> None:
    """Kills a process as the kernel does when memory runs out."""
    os.kill(process, signal.SIGKILL)
