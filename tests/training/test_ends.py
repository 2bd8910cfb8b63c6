"""How runs end: stopped, failed or killed, each leaves the best checkpoint that it can, and the manifest says which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lamina
from lamina.errors import Interrupted, StorageError, TrainingError
from lamina.losses import cross_entropy
from lamina.methods.shared.base import Hooks
from lamina.runs import Run, open_run
from lamina.runs.events import Event, Step
from lamina.signals import stop_on_signals
from lamina.training import loop, session
from lamina.training.checkpoint import newest_checkpoint
from tests.support.training import notes_into, settings

TRAIN = {"max_steps": 6, "eval_steps": 3, "save_steps": 2}


class PulledPlug(BaseException):
    """Stands for a death of the process: nothing in lamina may catch it."""


@pytest.fixture(scope="module")
def unbroken(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = lamina.train(settings(tmp_path_factory.mktemp("unbroken"), model_folder, train=TRAIN))
    assert run.status == run.manifest.status == "finished"
    return adapter_digest(run)


@pytest.fixture
def values(model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    return settings(tmp_path, model_folder, train=TRAIN)


@pytest.fixture
def run(values: dict[str, Any]) -> Run:
    return Run(Path(values["output_dir"]))


def adapter_digest(run: Run) -> str:
    assert run.summary is not None
    return run.summary.adapter_digest


def newest(run: Run) -> str:
    path = newest_checkpoint(run.checkpoints)
    return "none" if path is None else path.name


def at(kind: str, step: int, do: Callable[[], object]) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if event.kind == kind and event.step == step:
            do()

    return on_event


def send(name: str) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), getattr(signal, name))


def failing(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Lets the call of that number (from 1) of a function fail, before it does anything."""
    plain, calls = getattr(owner, name), iter(range(1, 10**6))

    def wrapper(*given: Any, **more: Any) -> Any:
        if next(calls) == call:
            raise RuntimeError("unforeseen")
        return plain(*given, **more)

    patch.setattr(owner, name, wrapper)


def throw(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals(name: str, values: dict[str, Any], run: Run, unbroken: str) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with pytest.raises(Interrupted, match=f"stopped by {name} after step 3 of 6") as stopped:
        lamina.train(values, at("step", 3, send(name)))
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert stopped.value.exit_code == 75
    details = stopped.value.details()
    assert (details["signal"], details["step"], details["run"]) == (name, 3, str(run.path))
    assert (run.status, newest(run)) == ("interrupted", "step-00000003")
    resumed = lamina.train(values, resume=True)
    assert (resumed.status, adapter_digest(resumed)) == ("finished", unbroken)
    assert resumed.manifest.error is None and resumed.manifest.ended is None


def test_a_hang_up_comes_twice_and_still_leaves_a_checkpoint(values: dict[str, Any], run: Run) -> None:
    """The terminal sends one, and so does the shell that ran in it."""

    def twice() -> None:
        send("SIGHUP")()
        send("SIGHUP")()

    with pytest.raises(Interrupted, match="SIGHUP"):
        lamina.train(values, at("step", 3, twice))
    assert newest(run) == "step-00000003"


def test_a_hang_up_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            send("SIGHUP")()
            assert stop.signal is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_stops_at_once(values: dict[str, Any], run: Run, unbroken: str) -> None:
    def twice() -> None:
        send("SIGINT")()
        send("SIGINT")()

    with pytest.raises(KeyboardInterrupt):
        lamina.train(values, at("step", 3, twice))
    assert (run.status, newest(run)) == ("interrupted", "step-00000002")
    assert adapter_digest(lamina.train(values, resume=True)) == unbroken


@pytest.mark.parametrize(
    ("kind", "moment", "error"),
    [
        ("note", 0, BrokenPipeError(32, "Broken pipe")),
        ("step", 3, OSError(5, "Input/output error")),
        ("progress", 3, BrokenPipeError(32, "Broken pipe")),
    ],
)
def test_when_nobody_looks_any_more(
    kind: str, moment: int, error: OSError, values: dict[str, Any], run: Run, unbroken: str
) -> None:
    told: list[Event] = []

    def on_event(event: Event) -> None:
        told.append(event)
        if event.kind == kind and event.step == moment:
            raise error

    with pytest.raises(Interrupted, match="stopped by SIGPIPE"):
        lamina.train(values, on_event)
    assert (told[-1].kind, told[-1].step) == (kind, moment), "it is not called again"
    assert run.status == "interrupted"
    assert adapter_digest(lamina.train(values, resume=True)) == unbroken


@pytest.mark.parametrize(
    ("owner", "name", "call", "whole"),
    [
        pytest.param(cross_entropy, "cross_entropy", 10, True, id="forward"),
        pytest.param(torch.Tensor, "backward", 11, True, id="backward"),
        pytest.param(Hooks, "penalty", 4, True, id="penalty"),
        pytest.param(loop, "evaluate_loss", 2, True, id="evaluation"),
        pytest.param(session, "plan_epoch", 3, True, id="data"),
        pytest.param(torch.optim.AdamW, "step", 4, False, id="optimizer"),
        pytest.param(Hooks, "after_update", 4, False, id="amid the update"),
    ],
)
def test_an_unforeseen_error_leaves_the_checkpoint_that_a_signal_does(
    owner: Any, name: str, call: int, whole: bool, values: dict[str, Any], run: Run, unbroken: str
) -> None:
    """Unless tensors and optimizer are then of no step: the last whole one is what is gone on from."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="unforeseen") as raised:
        failing(patch, owner, name, call)
        lamina.train(values)
    done = max(event.step for event in run.events(Step))
    assert done % 2, "else there was a checkpoint anyway"
    assert newest(run) == f"step-{done if whole else done - 1:08d}"
    assert run.manifest.status == "failed"
    assert run.manifest.error == "RuntimeError: unforeseen"
    said = " ".join(raised.value.__notes__)
    assert run.resume_command in said
    assert (f"A checkpoint of step {done} was saved" if whole else f"amid the update of step {done + 1}") in said
    assert adapter_digest(lamina.train(values, resume=True)) == unbroken


def test_an_error_of_the_callback_leaves_a_checkpoint_too(values: dict[str, Any], run: Run, unbroken: str) -> None:
    with pytest.raises(KeyError, match="theirs"):
        lamina.train(values, at("step", 3, lambda: throw(KeyError("theirs"))))
    assert (run.status, newest(run)) == ("failed", "step-00000003")
    assert adapter_digest(lamina.train(values, resume=True)) == unbroken


def test_a_failing_save_does_not_hide_the_error_that_came_first(
    values: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        monkeypatch.setattr(loop, "keep_checkpoint", lambda *_: throw(StorageError("the disk is full")))
        raise RuntimeError("unforeseen")

    with pytest.raises(RuntimeError, match="unforeseen") as raised:
        lamina.train(values, at("step", 3, full))
    assert "No checkpoint could be saved: the disk is full" in raised.value.__notes__
    assert newest(run) == "step-00000002"


def test_a_run_that_diverged_keeps_its_last_good_checkpoint(
    values: dict[str, Any], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of a lamina error is not one to go on from."""
    with pytest.raises(TrainingError):
        lamina.train(values, at("step", 3, lambda: throw(TrainingError("diverged"))))
    assert (run.status, newest(run)) == ("failed", "step-00000002")


def test_killed_is_running_that_nobody_does(values: dict[str, Any], run: Run, unbroken: str) -> None:
    seen: list[str | None] = []

    def on_event(event: Event) -> None:
        seen.append(open_run(run.path).status)
        if event.kind == "step" and event.step == 3:
            raise PulledPlug

    with pytest.raises(PulledPlug):
        lamina.train(values, on_event)
    assert set(seen) == {"running"}
    assert run.manifest.status == "running"
    assert run.status == "killed"
    assert open_run(run.path).manifest.status == "killed"
    notes: list[str] = []
    resumed = lamina.train(values, notes_into(notes), resume=True)
    assert (resumed.status, adapter_digest(resumed)) == ("finished", unbroken)


def test_what_comes_after_the_end_leaves_a_run_finished(values: dict[str, Any], run: Run, unbroken: str) -> None:
    with pytest.raises(KeyError):
        lamina.train(values, at("end", 6, lambda: throw(KeyError("theirs"))))
    assert run.status == "finished"
    assert adapter_digest(lamina.train(values, resume=True)) == unbroken


def test_the_command_whose_reader_leaves(values: dict[str, Any], run: Run, tmp_path: Path) -> None:
    """`lamina train CONFIG 2>&1 | head -1`: it ends in good order, says what it is by its code, and can be taken up."""
    values["train"] |= {"max_steps": 100_000, "eval_steps": 1, "save_steps": 100_000}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "lamina", "train", str(tmp_path / "c.yaml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=300) == 75
    assert run.status == "interrupted"
    assert newest(run) != "none"
