"""The real packages, offline: what a run of lamina leaves in each. Each is skipped where it is not installed."""

from __future__ import annotations

import json
import sqlite3
import zipfile
from pathlib import Path

import pytest

import lamina
from lamina.runs.events import Event, Step
from tests.support.training import settings

pytestmark = pytest.mark.slow


def train(model_folder: Path, tmp_path: Path, tracker: str) -> lamina.Run:
    """A run that is stopped after its second step, and then goes on to the fourth."""
    values = settings(
        tmp_path, model_folder, train={"max_steps": 4, "eval_steps": 2, "save_steps": 2, "report_to": tracker}
    )
    notes: list[str] = []

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.step == 3:
            raise RuntimeError("stopped")

    def keep(event: Event) -> None:
        notes.append(getattr(event, "message", ""))

    with pytest.raises(RuntimeError, match="stopped"):
        lamina.train(values, stop, progress=False)
    run = lamina.train(values, keep, resume=True, progress=False)
    assert not [note for note in notes if "tracker" in note], notes
    return run


def test_wandb(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    pytest.importorskip("wandb")
    run = train(model_folder, tmp_path, "wandb")
    folders = list((run.path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and len({folder.name.rpartition("-")[2] for folder in folders}) == 1, "one id for both"
    written = b"".join(file.read_bytes() for folder in folders for file in folder.glob("*.wandb"))
    for name in (b"train/loss", b"eval/loss", b"method.lora_alpha"):
        assert name in written


def test_mlflow(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    train(model_folder, tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("lamina").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["method.r"] == "4"
    assert {metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")} == {1, 2, 3, 4}
    assert found.data.metrics["eval/loss"] == pytest.approx(found.data.metrics["summary/eval_loss"], rel=0.5)


def test_trackio(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    train(model_folder, tmp_path, "trackio")
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by step").fetchall()
    by_name = {step for step, metrics in rows if "train/loss" in json.loads(metrics)}
    assert by_name == {1, 2, 3, 4}


def test_clearml(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "clearml"))
    pytest.importorskip("clearml")
    train(model_folder, tmp_path, "clearml")
    archives = list((tmp_path / "clearml").rglob("*.zip"))
    assert archives
    names = [name for archive in archives for name in zipfile.ZipFile(archive).namelist()]
    assert any("metrics" in name for name in names), names


def test_tensorboard(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(model_folder, tmp_path, "tensorboard")
    found = EventAccumulator(str(run.path / "tensorboard"))
    found.Reload()
    assert {event.step for event in found.Scalars("train/loss")} == {1, 2, 3, 4}
    assert {event.step for event in found.Scalars("eval/loss")} == {0, 2, 4}
