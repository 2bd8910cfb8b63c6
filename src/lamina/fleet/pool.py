"""Runs the tasks of a fleet: so many at once, each again from its checkpoint if it was lost, all of them to an end.

A run that has finished is taken as it is. A run that another process is training (of an earlier fleet that was killed,
say) is waited for. A task that failed by itself stops no other; nor is it tried again, since it would fail again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lamina.errors import Interrupted, NewerVersionError, RunError
from lamina.fleet.executor import Executor, Handle, Settled
from lamina.fleet.process import SECONDS
from lamina.fleet.task import Ended, Task
from lamina.fleet.watch import Watch
from lamina.progress import Notify
from lamina.runs import Run
from lamina.runs.summary import Summary
from lamina.signals import StopRequest

# How long stopped tasks have to save a checkpoint, in seconds; after that, the executor ends them.
STOP_SECONDS = 120.0
# Interval at which a run that another process trains is looked at.
_HELD_SECONDS = 2.0


@dataclass(frozen=True)
class Result:
    """How a task ended, over all attempts.

    Attributes:
        task: The task.
        ended: Its last attempt.
        seconds: Time of all attempts.
        hosts: The machine of each attempt, as far as it is known.
        retries: Number of attempts after the first.
        before: Whether it had finished before, so that nothing ran.
    """

    task: Task
    ended: Ended
    seconds: float = 0.0
    hosts: tuple[str, ...] = ()
    retries: int = 0
    before: bool = False


@dataclass
class _Job:
    """A task that has not ended."""

    task: Task
    place: str
    handle: Handle | None = None
    attempts: list[Ended] = field(default_factory=list)
    looked: float = 0.0
    held: bool = False

    def result(self, ended: Ended, before: bool = False) -> Result:
        hosts = tuple(each.host for each in self.attempts if each.host)
        retries = max(0, len(self.attempts) - 1)
        return Result(self.task, ended, sum(each.seconds for each in self.attempts), hosts, retries, before)


def run_tasks(
    tasks: Sequence[Task], executor: Executor, settled: Settled, notify: Notify, stop: StopRequest
) -> Iterator[Result]:
    """Runs tasks and yields each when it ends: done or failed, never lost.

    Args:
        tasks: The tasks.
        executor: Where they run.
        settled: How many at once, with what, and how often a lost one is tried again.
        notify: Called with messages on the progress.
        stop: A signal to this process: all tasks are asked to save a checkpoint and end.

    Raises:
        Interrupted: A signal came; what was done is kept.
        StorageError, FleetError: A task cannot be started.
    """
    yield from _Pool(tasks, executor, settled, notify, stop).run()


class _Pool:
    def __init__(
        self, tasks: Sequence[Task], executor: Executor, settled: Settled, notify: Notify, stop: StopRequest
    ) -> None:
        self.executor = executor
        self.settled = settled
        self.notify = notify
        self.stop = stop
        self.watch = Watch(notify)
        self.waiting = [_Job(task, f"{place}/{len(tasks)}  {task.name}") for place, task in enumerate(tasks, start=1)]
        self.running: list[_Job] = []

    def run(self) -> Iterator[Result]:
        try:
            while self.waiting or self.running:
                if self.stop.signal is not None:
                    raise self._stopped(self.stop.signal)
                yield from self._start()
                yield from self._look()
                self.watch.look([job.task for job in self.running])
                if self.running or self.waiting:
                    time.sleep(SECONDS)
        except BaseException:
            for job in self.running:
                if job.handle is not None:
                    job.handle.stop()
            raise

    def _start(self) -> Iterator[Result]:
        """Submits as many tasks as there is room for; yields those that have finished before."""
        for job in list(self.waiting):
            room = len(self.running) < self.settled.jobs
            if job.looked and not room:
                continue
            try:
                held, summary = self._is_held(job), _finished(job)
            except (RunError, NewerVersionError) as error:
                self.waiting.remove(job)
                yield job.result(Ended("failed", message=str(error)))
                continue
            if summary is not None:
                self.waiting.remove(job)
                self.notify(f"{job.place}: finished before")
                yield job.result(Ended("done", summary.as_json()), before=True)
            elif room and not held:
                self.waiting.remove(job)
                self.running.append(job)
                self.notify(f"{job.place} ... ({job.task.log})")
                job.handle = self.executor.submit(job.task, self.settled.resources)

    def _is_held(self, job: _Job) -> bool:
        """Returns whether another process trains the run, such as one that a lost attempt has left behind."""
        if job.held and time.monotonic() < job.looked + _HELD_SECONDS:
            return True
        job.looked = time.monotonic()
        held = job.task.run is not None and Run(job.task.run).status == "running"
        if held and not job.held:
            self.notify(f"{job.place}: another process is training it; waits until that ends")
        job.held = held
        return held

    def _look(self) -> Iterator[Result]:
        """Looks after the tasks that run; yields those that have ended for good."""
        for job in list(self.running):
            ended = None if job.handle is None else job.handle.poll()
            if ended is None:
                continue
            self.running.remove(job)
            job.attempts.append(ended)
            lost = len([each for each in job.attempts if each.how == "lost"])
            if ended.how != "lost":
                yield job.result(ended)
            elif self.stop.signal is not None:
                continue
            elif lost <= self.settled.retries:
                self.notify(
                    f"{job.place}: lost ({ended.message.removesuffix('.')}); goes on from its last checkpoint "
                    f"(retry {lost} of {self.settled.retries})"
                )
                self.waiting.insert(0, job)
            else:
                message = f"lost {lost} times, at last: {ended.message}"
                yield job.result(Ended("failed", message=message, host=ended.host))

    def _stopped(self, signal: str) -> Interrupted:
        """Asks all tasks to end, and waits until they have."""
        if self.running:
            self.notify(f"{signal}: {len(self.running)} running; each saves a checkpoint ...")
        for job in self.running:
            if job.handle is not None:
                job.handle.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self.running and time.monotonic() < deadline:
            self.running = [job for job in self.running if not _has_left(job)]
            time.sleep(SECONDS)
        self.running.clear()
        message = f"stopped by {signal}; finished work is kept. To continue, run the same command again"
        return Interrupted(message, signal=signal)


def _finished(job: _Job) -> Summary | None:
    """Returns the figures of a run that has finished; None for any other task."""
    run = None if job.task.run is None else Run(job.task.run)
    return None if run is None or not run.adapter.is_dir() else run.summary


def _has_left(job: _Job) -> bool:
    """Returns whether a task that was asked to end has ended, and its process too."""
    if job.handle is not None and job.handle.poll() is None:
        return False
    return job.task.run is None or Run(job.task.run).status != "running"
