"""`--on slurm`: jobs of a Slurm cluster, through submitit. `--option cluster=local` runs the same jobs here.

A job that Slurm preempts, or whose time is up, saves a checkpoint, and submitit puts it back into the queue. A job that
ends without a result, because its machine failed or somebody cancelled it, is lost, and the fleet submits it again.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lamina.config.section import Section
from lamina.errors import FleetError
from lamina.fleet.executors.local import usable_cores
from lamina.fleet.process import TaskProcess, run_task
from lamina.fleet.task import Ended, Resources, Task
from lamina.packages import needed_package

_FOLDER = "slurm"


class SlurmOptions(Section):
    """What `--option` sets; the rest are sbatch's defaults."""

    cluster: Literal["slurm", "local"] = "slurm"
    """`local` runs the jobs on this machine, without Slurm."""

    time: int = 24 * 60
    """Time limit of a job in minutes. A run that takes longer goes on in another job."""

    signal_delay: int = 90
    """How long before a job's end it is told to save a checkpoint, in seconds."""

    requeues: int = 100
    """How often a job whose time was up goes back into the queue."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    mem: str | None = None
    """Memory of a job, such as `32GB`."""

    setup: list[str] | None = None
    """Shell commands before the job, such as `[module load cuda]`."""

    additional: dict[str, Any] | None = None
    """Other parameters of sbatch, such as `{mail-type: FAIL}`."""


OPTIONS = SlurmOptions


class SlurmTask:
    """What a job runs. submitit pickles it, calls it in the job, and asks for a `checkpoint` before the job ends."""

    def __init__(self) -> None:
        self._process: TaskProcess | None = None

    def __call__(self, task: Task, resources: Resources) -> Ended:
        return run_task(task, resources, started=self._keep)

    def checkpoint(self, task: Task, resources: Resources) -> Any:
        """Lets the task save a checkpoint, and returns what the next job runs."""
        if self._process is not None:
            self._process.stop()
            self._process.wait()
        return _submitit("submitit.helpers").DelayedSubmission(SlurmTask(), task, resources)

    def _keep(self, process: TaskProcess) -> None:
        self._process = process


class SlurmExecutor:
    """Submits each task as a job.

    Args:
        options: The options.
        folder: Where submitit keeps the jobs' scripts, results and logs.
    """

    def __init__(self, options: SlurmOptions, folder: Path) -> None:
        self._submitit = _submitit()
        self._options = options
        self._folder = folder
        self._handles: list[SlurmHandle] = []

    def submit(self, task: Task, resources: Resources) -> SlurmHandle:
        """Submits a task.

        Raises:
            FleetError: There is no Slurm here, or it does not take the job.
        """
        try:
            executor = self._submitit.AutoExecutor(
                self._folder / "%j", cluster=self._options.cluster, slurm_max_num_timeout=self._options.requeues
            )
            executor.update_parameters(**self._parameters(task, resources))
            # submitit would take them from the job that this process may be in, and those are another job's.
            with self._submitit.helpers.clean_env():
                job = executor.submit(SlurmTask(), task, resources)
        except (RuntimeError, ValueError, OSError, subprocess.SubprocessError, self._failed) as error:
            raise FleetError(
                f"{task.name}: Slurm does not take the job: {error}. Fix: run this where `sbatch` and `srun` work, and "
                "check --option, --cpus and --gpus."
            ) from error
        self._handles.append(SlurmHandle(job, self._submitit))
        return self._handles[-1]

    def share(self, jobs: int) -> int:
        """Returns 1: how many CPUs a cluster has for a job is not known here. With `cluster=local`, as `--on local`."""
        return max(1, usable_cores() // jobs) if self._options.cluster == "local" else 1

    def end(self) -> None:
        """Cancels all jobs that have not ended."""
        for handle in self._handles:
            if handle.poll() is None:
                handle.stop()

    @property
    def _failed(self) -> type[Exception]:
        return self._submitit.core.utils.FailedSubmissionError

    def _parameters(self, task: Task, resources: Resources) -> dict[str, Any]:
        given = self._options
        found: dict[str, Any] = {
            "name": f"lamina-{task.name}",
            "timeout_min": given.time,
            "cpus_per_task": resources.cpus,
            "gpus_per_node": resources.gpus,
            "tasks_per_node": 1,
            "nodes": 1,
            "slurm_signal_delay_s": given.signal_delay,
            "slurm_additional_parameters": given.additional,
            "slurm_mem": given.mem,
            "slurm_setup": given.setup,
        }
        found |= {f"slurm_{name}": getattr(given, name) for name in ("partition", "account", "qos", "constraint")}
        return {name: value for name, value in found.items() if value is not None}


class SlurmHandle:
    """A job."""

    def __init__(self, job: Any, submitit: Any) -> None:
        self._job = job
        self._submitit = submitit
        self._ended: Ended | None = None
        self._cancelled = False

    def poll(self) -> Ended | None:
        """Returns how the job ended; None while it waits, runs, or is on its way back into the queue."""
        if self._ended is None and self._job.done():
            if self._cancelled:  # there may be no result, for which submitit would wait
                self._ended = Ended("lost", message="cancelled")
                return self._ended
            utils = self._submitit.core.utils
            try:
                self._ended = self._job.result()
            except utils.FailedJobError as error:
                self._ended = Ended("failed", message=_last_line(error))
            except utils.UncompletedJobError:
                message = f"job {self._job.job_id} ended without a result ({self._job.state.lower()})"
                self._ended = Ended("lost", message=message)
        return self._ended

    def stop(self) -> None:
        """Cancels the job: Slurm sends SIGTERM to all of its processes."""
        self._cancelled = True
        self._job.cancel(check=False)


@contextlib.contextmanager
def start(options: SlurmOptions, folder: Path) -> Iterator[SlurmExecutor]:
    """Gives the executor; jobs that have not ended are cancelled after the block."""
    executor = SlurmExecutor(options, folder / _FOLDER)
    try:
        yield executor
    finally:
        executor.end()


def _submitit(module: str = "submitit") -> Any:
    return needed_package(module, "slurm", "--on", "slurm")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
