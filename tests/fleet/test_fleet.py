"""`run_fleet`: which configurations there are, and small runs that are killed, resumed and equal to single ones."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from lamina.errors import ConfigError, Interrupted
from lamina.fleet import fleet
from lamina.fleet.executor import Placement
from lamina.fleet.fleet import build_members, run_fleet
from lamina.fleet.task import Ended
from lamina.runs import Run
from lamina.training.loop import train
from tests.support.fleet import Scripted, digests, kill, train_fleet, when_trained, write_configs
from tests.support.runs import SUMMARY

DONE = Ended("done", SUMMARY.as_json(), seconds=2.0, host="h")


def write(path: Path, text: str = "data: {train: rows.jsonl}") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_names_and_run_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [write(tmp_path / name) for name in ("a.yaml", "x/run.yaml", "y/run.yaml")]
    assert [each.name for each in build_members(paths, [], tmp_path / "out")] == ["a", "x-run", "y-run"]
    inside = build_members(paths, ["seed=3"], Path("out"))
    assert [each.config.output_dir for each in inside] == ["out/runs/a", "out/runs/x-run", "out/runs/y-run"]
    assert {each.config.seed for each in inside} == {3}
    (own,) = build_members(paths[:1], [], None)
    assert own.config.output_dir == "runs/a"


def test_all_that_is_wrong_is_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = write(tmp_path / "good.yaml"), write(tmp_path / "bad.yaml", "data: {train: a}\nmethod: {r: 0}")
    with pytest.raises(ConfigError) as caught:
        build_members([good, bad, "nope.yaml"], [], None)
    assert all(word in str(caught.value) for word in ("bad.yaml: method.r", "nope.yaml: config", "does not exist"))
    with pytest.raises(ConfigError, match="the same configuration twice"):
        build_members([good, good], [], None)
    with pytest.raises(ConfigError, match="good and b both train into runs/same"):
        build_members([good, write(tmp_path / "b.yaml")], ["output_dir=runs/same"], None)


def test_a_failed_one_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Scripted({"a": [Ended("failed", message="no data", seconds=1.5, host="h")], "b": [DONE]})
    monkeypatch.setattr(fleet, "start_executor", lambda placement, folder: nullcontext(executor))
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    paths = [write(tmp_path / f"{name}.yaml") for name in "ab"]
    report = run_fleet(build_members(paths, [], Path("out")), "out", Placement(jobs=2), said.append)
    failed, finished = report.rows
    assert (failed.status, failed.error, failed.seconds, failed.hosts) == ("failed", "no data", 1.5, ["h"])
    assert (finished.status, finished.adapter_digest) == ("finished", SUMMARY.adapter_digest)
    written = json.loads((tmp_path / "out/fleet.json").read_text())
    assert written == report.as_json()
    assert written["failed"] == ["a"]
    assert written["settings"] == {"on": "local", "jobs": 2, "threads": report.settings["threads"], "gpus": None}
    assert any(line.startswith("a: failed: no data") for line in said)


def test_a_killed_one_is_resumed(tmp_path: Path, model_folder: Path) -> None:
    """To the adapter that it would have had."""
    (path,) = write_configs(tmp_path, model_folder, [2])
    alone = train(path)
    killing = when_trained(tmp_path / "out" / "runs" / "r2", 3, kill)
    report, said = train_fleet([path], tmp_path / "out", Placement(cpus=1))
    killing.join(1)
    (trained,) = report.rows
    assert alone.summary is not None
    assert (trained.status, trained.retries, trained.threads) == ("finished", 1, 1)
    assert trained.adapter_digest == alone.summary.adapter_digest
    assert (trained.train_loss_last, trained.eval_loss) == (alone.summary.train_loss_last, alone.summary.eval_loss)
    assert trained.seconds and trained.peak_memory_bytes and len(trained.hosts) == 2
    assert any("r2: lost (its process was killed by signal 9" in line and "retry 1 of 3" in line for line in said)
    assert any("Resumed from step" in line for line in (tmp_path / "out/logs/r2.log").read_text().splitlines())

    again, said = train_fleet([path], tmp_path / "out", Placement(cpus=1))
    assert again.rows == [trained] and any("finished before" in line for line in said)
    with pytest.raises(ConfigError, match="was started with another configuration"):
        build_members([path], ["seed=1"], tmp_path / "out")


@pytest.mark.slow
def test_many_at_once_give_the_table_of_one_after_another(tmp_path: Path, model_folder: Path) -> None:
    paths = write_configs(tmp_path, model_folder, [1, 2, 3, 4])
    sequential, _ = train_fleet(paths, tmp_path / "one", Placement(cpus=1))
    parallel, _ = train_fleet(paths, tmp_path / "two", Placement(jobs=2, cpus=1))
    assert len(set(digests(sequential))) == 4
    assert digests(parallel) == digests(sequential)
    same = ("name", "status", "threads", "steps", "train_loss_first", "train_loss_last", "eval_loss_first", "eval_loss")
    for one, two in zip(sequential.rows, parallel.rows, strict=True):
        assert [getattr(one, name) for name in same] == [getattr(two, name) for name in same]


@pytest.mark.slow
def test_a_signal_stops_all_and_the_same_call_goes_on(tmp_path: Path, model_folder: Path) -> None:
    paths = write_configs(tmp_path, model_folder, [2, 3], steps=60)
    plain, _ = train_fleet(paths, tmp_path / "plain", Placement(cpus=1))
    out = tmp_path / "out"
    when_trained(out / "runs" / "r2", 3, lambda process: signal.raise_signal(signal.SIGINT))
    said: list[str] = []
    with pytest.raises(Interrupted, match="run the same command again"):
        run_fleet(build_members(paths, [], out), out, Placement(jobs=2, cpus=1), said.append)
    assert threading.active_count() < 4
    assert Run(out / "runs" / "r2").status == "interrupted"
    report, _ = train_fleet(paths, out, Placement(jobs=2, cpus=1))
    assert digests(report) == digests(plain)
