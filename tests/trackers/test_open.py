"""Trackers get figures under the usual names, and one that fails is left out, with a note; the run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lamina
from lamina import plugins
from lamina.config import Config, load_config
from lamina.errors import ConfigError
from lamina.runs.events import Evaluation, Note
from lamina.trackers.base import TrackedRun
from lamina.trackers.open import OpenTrackers, check_trackers
from tests.support.events import step
from tests.support.training import settings


class Kept:
    """A tracker that keeps what it is told, and raises where it is told to."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ends: list[str] = []
        self.summary: Mapping[str, Any] = {}
        self.run: TrackedRun | None = None

    def start(self, run: TrackedRun) -> Kept:
        self._do("start")
        self.run = run
        return self

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._do("log")
        self.logged.append((step, dict(metrics)))

    def finish(self, end: str, summary: Mapping[str, Any]) -> None:
        self._do("finish")
        self.ends.append(end)
        self.summary = summary

    def _do(self, what: str) -> None:
        if what == self.fails:
            raise RuntimeError(f"no {what}\nat all")


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Kept]:
    found: dict[str, Kept] = {"wandb": Kept(), "mlflow": Kept()}
    load = plugins.load_member
    monkeypatch.setattr(
        plugins, "load_member", lambda family, name: found[name] if family == "trackers" else load(family, name)
    )
    return found


RUN = TrackedRun("id", "name", Path("runs/x"), {"seed": 0}, False)


def test_figures_have_the_usual_names(trackers: dict[str, Kept]) -> None:
    tracked = OpenTrackers(["wandb", "wandb"], RUN, pytest.fail)
    tracked.log(Note(0, message="x"))
    tracked.log(Evaluation(0, eval_loss=3.0, of="base", metrics={"rewards/accuracies": 0.5}))
    tracked.log(step(1, 2.0))
    tracked.close("interrupted")
    (zero, evaluation), (one, training) = trackers["wandb"].logged
    assert (zero, evaluation) == (0, {"eval/loss": 3.0, "eval/rewards/accuracies": 0.5})
    assert one == 1 and training["train/loss"] == 2.0 and training["train/learning_rate"] == 1e-3
    assert trackers["wandb"].ends == ["interrupted"]


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_one_that_fails_ends_no_run(fails: str, trackers: dict[str, Kept], model_folder: Path, tmp_path: Path) -> None:
    trackers["wandb"] = Kept(fails)
    notes: list[str] = []
    run = lamina.train(
        settings(tmp_path, model_folder, train={"max_steps": 2, "report_to": ["wandb", "mlflow"]}),
        lambda event: notes.append(event.message) if isinstance(event, Note) else None,
        progress=False,
    )
    assert run.status == "finished"
    said = [note for note in notes if "tracker wandb failed" in note]
    assert said == [
        f"warning: the tracker wandb failed, and the run goes on without it (RuntimeError: no {fails} at all)."
    ]
    other = trackers["mlflow"]
    assert other.ends == ["finished"] and other.summary["steps"] == 2
    assert [number for number, _ in other.logged] == [0, 1, 2, 2]
    assert other.run is not None and other.run.config["train.max_steps"] == 2 and not other.run.resumed


def test_a_run_that_fails_says_so(trackers: dict[str, Kept], model_folder: Path, tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Evaluation):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        lamina.train(
            settings(tmp_path, model_folder, train={"max_steps": 2, "report_to": "wandb"}), stop, progress=False
        )
    assert trackers["wandb"].ends == ["failed"]


def _reports(value: object) -> Config:
    return load_config({"data": {"train": "a.jsonl"}, "train": {"report_to": value}})


def test_a_name_or_a_list() -> None:
    assert _reports("wandb").train.report_to == ["wandb"]
    assert _reports("none").train.report_to == _reports([]).train.report_to == []
    assert load_config({"data": {"train": "a"}}, ["train.report_to=mlflow"]).train.report_to == ["mlflow"]
    with pytest.raises(ConfigError, match=r"'wandbb' is not one of .*wandb"):
        _reports("wandbb")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "load_member", lambda family, name: SimpleNamespace(PACKAGE="no_such_package"))
    with pytest.raises(ConfigError, match=r"needs the package no_such_package.*pip install no_such_package"):
        check_trackers(["wandb"])
