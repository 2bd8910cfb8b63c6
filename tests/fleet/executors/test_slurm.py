"""`--on slurm`, with submitit's local executor, which runs the same jobs without Slurm."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from lamina.errors import FleetError
from lamina.fleet.executor import Placement, start_executor
from lamina.fleet.task import Ended, Resources
from tests.support.fleet import digests, kill, python_task, train_fleet, when_trained, write_configs

pytest.importorskip("submitit")

LOCAL = ("cluster=local",)
ONE = Resources(cpus=1)


def wait(handle: object) -> Ended:
    while (ended := handle.poll()) is None:  # type: ignore[attr-defined]
        time.sleep(0.05)
    return ended


def test_jobs_end_as_tasks_do(tmp_path: Path) -> None:
    with start_executor(Placement("slurm", options=LOCAL), tmp_path) as executor:
        good = executor.submit(python_task(tmp_path, "print('{\"a\": 1}')", "good"), ONE)
        bad = executor.submit(python_task(tmp_path, "raise ValueError('bad')", "bad"), ONE)
        cut = executor.submit(python_task(tmp_path, "import os; os.kill(os.getpid(), 9)", "cut"), ONE)
        assert (wait(good).how, wait(good).printed) == ("done", {"a": 1})
        assert wait(bad).how == "failed" and "ValueError: bad" in wait(bad).message
        assert wait(cut).how == "lost"
    assert (tmp_path / "slurm").is_dir()


def test_without_slurm_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with start_executor(Placement("slurm"), tmp_path) as executor, pytest.raises(FleetError, match="where `sbatch`"):
        executor.submit(python_task(tmp_path, "1"), ONE)


@pytest.mark.slow
def test_a_preempted_job_goes_back_into_the_queue(tmp_path: Path, model_folder: Path) -> None:
    """Equal to the table of one process after another, with a job that was preempted and one that was killed."""
    paths = write_configs(tmp_path, model_folder, [2, 4])
    plain, _ = train_fleet(paths, tmp_path / "plain", Placement(cpus=1))

    preempted = when_trained(tmp_path / "out" / "runs" / "r2", 3, lambda trainer: _preempt(trainer))
    killed = when_trained(tmp_path / "out" / "runs" / "r4", 3, kill)
    report, said = train_fleet(paths, tmp_path / "out", Placement("slurm", jobs=2, cpus=1, options=LOCAL))
    preempted.join(1)
    killed.join(1)
    assert digests(report) == digests(plain)
    assert [row.retries for row in report.rows] == [0, 1], "submitit requeues, and the fleet submits again"
    assert sum("retry 1 of 3" in line for line in said) == 1


def _preempt(trainer: int) -> None:
    """Sends the signal with which Slurm announces the end, to the job's process and to its child."""
    import psutil

    job = psutil.Process(trainer).parent()
    assert job is not None
    for process in (trainer, job.pid):
        psutil.Process(process).send_signal(signal.SIGUSR2)
