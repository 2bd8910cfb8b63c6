"""Kill it anywhere, resume, and the adapter is that of the run that was never killed, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lamina
from lamina import files
from lamina.compute.kernels import native
from lamina.errors import Interrupted, RunError, StorageError
from lamina.runs import Run
from lamina.runs.events import Event, Progress, Step
from lamina.training.checkpoint import newest_checkpoint
from tests.support.training import notes_into, settings


class PulledPlug(BaseException):
    """Stands for a death of the process: nothing in lamina may catch it."""


def digest(run: Run) -> str:
    assert run.summary is not None
    return run.summary.adapter_digest


@pytest.fixture(scope="module")
def unbroken(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return lamina.train(settings(tmp_path_factory.mktemp("unbroken"), model_folder))


def cut_at(kind: str, step: int) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if event.kind == kind and event.step == step:
            raise PulledPlug

    return on_event


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("start", 0),
        ("progress", 0),
        ("step", 1),
        ("step", 3),
        ("checkpoint", 3),
        ("step", 4),
        ("progress", 4),
        ("eval", 4),
        ("step", 7),
        ("progress", 8),
        ("step", 12),
        ("eval", 12),
        ("checkpoint", 12),
    ],
)
def test_cut_and_resumed_is_unbroken(kind: str, step: int, unbroken: Run, model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder)
    with pytest.raises(PulledPlug):
        lamina.train(values, cut_at(kind, step))
    resumed = lamina.train(values, resume=True)
    assert digest(resumed) == digest(unbroken)
    assert resumed.summary is not None
    assert unbroken.summary is not None
    ours, plain = resumed.summary.as_json(), unbroken.summary.as_json()
    for figure in (
        "tokens",
        "supervised_tokens",
        "train_loss_first",
        "train_loss_last",
        "eval_loss_first",
        "eval_loss",
    ):
        assert ours[figure] == plain[figure], figure
    assert [event.step for event in resumed.events(Step)] == list(range(1, 13))


def test_cut_several_times(unbroken: Run, model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder)
    for resume, (kind, step) in enumerate([("step", 2), ("eval", 4), ("step", 8), ("step", 11)]):
        with pytest.raises(PulledPlug):
            lamina.train(values, cut_at(kind, step), resume=bool(resume))
    assert digest(lamina.train(values, resume=True)) == digest(unbroken)


def test_a_damaged_checkpoint_is_passed_over(unbroken: Run, model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder)
    with pytest.raises(PulledPlug):
        lamina.train(values, cut_at("step", 8))
    newest = newest_checkpoint(Path(values["output_dir"]) / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000006"
    damaged = bytearray((newest / "adapter.safetensors").read_bytes())
    damaged[-1] ^= 1
    (newest / "adapter.safetensors").write_bytes(damaged)
    notes: list[str] = []
    resumed = lamina.train(values, notes_into(notes), resume=True)
    assert any(note.startswith("Resumed from step 3 ") for note in notes)
    assert digest(resumed) == digest(unbroken)


def test_leftovers_of_a_cut_save_are_removed(model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder)
    with pytest.raises(PulledPlug):
        lamina.train(values, cut_at("step", 4))
    folder = Path(values["output_dir"]) / "checkpoints"
    (folder / f"{files.TEMPORARY_PREFIX}step-00000006-abc").mkdir()
    run = lamina.train(values, resume=True)
    assert not [path for path in run.checkpoints.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_leaves(name: str, unbroken: Run, model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder)

    def on_event(event: Event) -> None:
        if event.kind == "step" and event.step == 5:
            os.kill(os.getpid(), getattr(signal, name))

    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(
        Interrupted, match=rf"stopped by {name} after step 5 of 12.*lamina train .*config.yaml --resume"
    ):
        lamina.train(values, on_event)
    assert signal.getsignal(getattr(signal, name)) == before
    newest = newest_checkpoint(Path(values["output_dir"]) / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000005"
    assert digest(lamina.train(values, resume=True)) == digest(unbroken)


def test_a_signal_during_an_evaluation(unbroken: Run, model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder, train={"per_device_eval_batch_size": 2})

    def on_event(event: Event) -> None:
        if isinstance(event, Progress) and event.step == 4 and event.done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="after step 4"):
        lamina.train(values, on_event)
    assert digest(lamina.train(values, resume=True)) == digest(unbroken)


def full_disk(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("lamina.training.checkpoint._save_tensors", fail)


@pytest.mark.parametrize(
    ("error", "words"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")]
)
def test_a_failed_save_leaves_the_last_checkpoint(
    error: int, words: str, unbroken: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = settings(tmp_path, model_folder)

    def on_event(event: Event) -> None:
        if event.kind == "step" and event.step == 5:
            full_disk(monkeypatch, error)

    with pytest.raises(StorageError, match=rf"step-00000006: writing failed: .*{words}.*Fix: "):
        lamina.train(values, on_event)
    monkeypatch.undo()
    folder = Path(values["output_dir"]) / "checkpoints"
    assert newest_checkpoint(folder) == folder / "step-00000003"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert digest(lamina.train(values, resume=True)) == digest(unbroken)


def test_a_really_full_disk_while_saving(unbroken: Run, model_folder: Path, tmp_path: Path) -> None:
    """A limit on file sizes makes the system itself refuse the write, in safetensors' own code."""
    values = settings(tmp_path, model_folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def on_event(event: Event) -> None:
        if event.kind == "step" and event.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))

    try:
        with pytest.raises(StorageError, match=r"step-00000006: writing failed"):
            lamina.train(values, on_event)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert digest(lamina.train(values, resume=True)) == digest(unbroken)


def test_resumed_with_other_kernels(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right, but another rounding: it is said."""
    values = settings(tmp_path, model_folder)
    with pytest.raises(PulledPlug):
        lamina.train(values, cut_at("step", 4))
    first = Run(Path(values["output_dir"])).manifest.kernels
    if first == "plain":
        pytest.skip("there are no compiled kernels here")
    notes: list[str] = []
    monkeypatch.setenv("LAMINA_KERNELS", "plain")
    native.load_kernels.cache_clear()
    try:
        lamina.train(values, notes_into(notes), resume=True)
    finally:
        monkeypatch.undo()
        native.load_kernels.cache_clear()
    (said,) = [note for note in notes if "not quite where the run was started" in note]
    assert "its kernels (compiled, now plain) changed" in said


def test_two_processes_do_not_share_a_run(model_folder: Path, tmp_path: Path) -> None:
    values = settings(tmp_path, model_folder, train={"max_steps": 2})

    def on_event(event: Event) -> None:
        if event.kind == "step" and event.step == 1:
            with pytest.raises(RunError, match="another process is training"):
                lamina.train(values, resume=True)

    lamina.train(values, on_event)


def kill_at_random(values: dict[str, Any], config: Path, moments: list[float]) -> Run:
    """Starts the real command, kills it -9 after each of the moments (in seconds of training), and lets it finish.

    On as many threads as this process has: resume is exact for the same number of them.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    config.write_text(yaml.safe_dump(values))
    run = Run(Path(values["output_dir"]))
    command = [sys.executable, "-m", "lamina", "train", str(config), "--json"]
    for moment in moments:
        resume = ["--resume"] if run.begun else []
        process = subprocess.Popen(
            [*command, *resume], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        before = run.metrics_path.stat().st_size if run.metrics_path.exists() else 0
        while process.poll() is None and (not run.metrics_path.exists() or run.metrics_path.stat().st_size == before):
            time.sleep(0.005)  # until the process has begun to write
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
    resume = ["--resume"] if run.begun else []
    done = subprocess.run([*command, *resume], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["adapter_digest"] == digest(run)
    return run


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9(kills: int, model_folder: Path, tmp_path: Path) -> None:
    """Checkpoints at every step, so that kills fall into their writing too."""
    changes = {"max_steps": 24, "save_steps": 1, "eval_steps": 8}
    expected = lamina.train(settings(tmp_path, model_folder, "unbroken", train=changes))
    rng = random.Random(kills)
    moments = [rng.uniform(0.0, 1.2) for _ in range(kills)]
    killed = kill_at_random(settings(tmp_path, model_folder, "killed", train=changes), tmp_path / "c.yaml", moments)
    assert digest(killed) == digest(expected)
