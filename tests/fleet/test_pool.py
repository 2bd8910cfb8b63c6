"""The order of a fleet: so many tasks at once, lost ones again, failed ones alone, and an end on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from lamina.errors import Interrupted
from lamina.fleet import pool
from lamina.fleet.executor import Placement
from lamina.fleet.pool import Result, run_tasks
from lamina.fleet.task import Ended, Task
from lamina.runs import LOCK_FILE
from lamina.signals import StopRequest
from tests.support.fleet import Scripted, python_task
from tests.support.runs import SUMMARY

LOST = Ended("lost", message="its node died.", seconds=2.0, host="a")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SECONDS", 0.0)


def run(
    tasks: list[Task], executor: Scripted, *, jobs: int = 2, retries: int = 3, stop: StopRequest | None = None
) -> tuple[list[Result], list[str]]:
    said: list[str] = []
    settled = Placement(jobs=jobs, retries=retries).settled(executor, len(tasks))
    return list(run_tasks(tasks, executor, settled, said.append, stop or StopRequest())), said


def tasks(folder: Path, names: str) -> list[Task]:
    return [python_task(folder, "1", name) for name in names]


@pytest.mark.parametrize(("count", "jobs"), [(1, 1), (5, 1), (5, 2), (5, 8)])
def test_no_more_run_than_there_is_room_for(count: int, jobs: int, tmp_path: Path) -> None:
    executor = Scripted(polls=3)
    results, _ = run(tasks(tmp_path, "abcde"[:count]), executor, jobs=jobs)
    assert executor.most == min(count, jobs)
    assert sorted(result.task.name for result in results) == list("abcde"[:count])
    assert {result.ended.how for result in results} == {"done"}


def test_a_lost_task_is_tried_again_and_that_is_said(tmp_path: Path) -> None:
    executor = Scripted({"b": [LOST, LOST]})
    results, said = run(tasks(tmp_path, "ab"), executor)
    found = {result.task.name: result for result in results}
    assert executor.submitted.count("b") == 3 and executor.submitted.count("a") == 1
    assert (found["b"].retries, found["b"].seconds, found["b"].hosts) == (2, 4.0, ("a", "a"))
    assert found["a"].retries == 0
    assert sum("its node died); goes on from its last checkpoint (retry" in line for line in said) == 2


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_have_an_end(retries: int, tmp_path: Path) -> None:
    executor = Scripted({"a": [LOST] * 9})
    (result,), _ = run(tasks(tmp_path, "a"), executor, retries=retries)
    assert len(executor.submitted) == retries + 1
    assert result.ended.how == "failed"
    assert f"lost {retries + 1} times, at last: its node died" in result.ended.message


def test_a_failure_is_not_tried_again_and_stops_nobody(tmp_path: Path) -> None:
    executor = Scripted({"a": [Ended("failed", message="no [luck]")]})
    results, _ = run(tasks(tmp_path, "abc"), executor, jobs=1)
    assert executor.submitted == ["a", "b", "c"]
    assert [result.ended.how for result in results] == ["failed", "done", "done"]


def test_a_signal_stops_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    executor, stop, said = Scripted(polls=10**9), StopRequest(), []
    settled = Placement(jobs=2).settled(executor, 3)

    def notify(message: str) -> None:
        said.append(message)
        if len(executor.submitted) == 1:  # said before the second one is submitted
            stop.signal = "SIGINT"

    with pytest.raises(Interrupted, match="stopped by SIGINT; finished work is kept") as caught:
        list(run_tasks(tasks(tmp_path, "abc"), executor, settled, notify, stop))
    assert caught.value.exit_code == 75
    assert sorted(executor.stopped) == ["a", "b"] == executor.submitted
    assert "2 running; each saves a checkpoint" in said[-1]


def trained(folder: Path, name: str, status: str) -> Task:
    run = folder / "runs" / name
    (run / "adapter").mkdir(parents=True)
    manifest = {"format": 1, "status": status, "base": {"ref": "b", "tensors": "abc", "config": "def"}}
    summary = {"summary": SUMMARY.as_json()} if status == "finished" else {}
    (run / "manifest.json").write_text(json.dumps(manifest | summary))
    return Task(name, ("-c", "1"), folder / "log", folder, run=run)


def test_finished_runs_are_taken_as_they_are(tmp_path: Path) -> None:
    executor = Scripted()
    done, cut = trained(tmp_path, "done", "finished"), trained(tmp_path, "cut", "running")
    results, said = run([done, cut], executor)
    assert executor.submitted == ["cut"]
    (before,) = [result for result in results if result.before]
    assert before.task is done and before.ended.printed["adapter_digest"] == SUMMARY.adapter_digest
    assert any("done: finished before" in line for line in said)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_HELD_SECONDS", 0.0)
    executor, held = Scripted(polls=2), trained(tmp_path, "held", "running")
    lock = FileLock(held.run / LOCK_FILE) if held.run else None
    assert lock is not None
    lock.acquire()
    said: list[str] = []
    settled = Placement(jobs=1).settled(executor, 2)
    for result in run_tasks([held, python_task(tmp_path, "1", "free")], executor, settled, said.append, StopRequest()):
        if result.task.name == "free":
            assert executor.submitted == ["free"]
            lock.release()
    assert executor.submitted == ["free", "held"]
    assert sum("another process is training it" in line for line in said) == 1


def test_a_damaged_run_fails_alone(tmp_path: Path) -> None:
    damaged = trained(tmp_path, "damaged", "finished")
    assert damaged.run is not None
    (damaged.run / "manifest.json").write_text("{")
    executor = Scripted()
    results, _ = run([damaged, python_task(tmp_path, "1", "whole")], executor)
    found = {result.task.name: result.ended for result in results}
    assert found["damaged"].how == "failed" and "is not readable" in found["damaged"].message
    assert found["whole"].how == "done"
