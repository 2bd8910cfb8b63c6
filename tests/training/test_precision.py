"""Training in float16 with a loss scale, and on the device that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lamina
from lamina.adapters.adapter import read_adapter
from lamina.config import load_config
from lamina.errors import ConfigError
from lamina.machine import hardware
from lamina.machine.hardware import choose_dtype, default_device, explain_dtype, find_device, on_device
from lamina.runs.events import Event
from lamina.training import base, loss_scale
from lamina.training.checkpoint import newest_checkpoint
from lamina.training.loss_scale import LossScale
from tests.support.training import notes_into, settings

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_the_scale_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    ours, weight = LossScale(), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for finite in [False, True, True, True, True, False, False, *[True] * 7]:
        theirs.scale(weight.sum() if finite else (weight * torch.inf).sum()).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        ours.update(finite)
        assert ours.scale == theirs.get_scale()


def test_a_power_of_two_changes_no_gradient() -> None:
    scale, weight = LossScale(2.0**16), nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(0)))
    gradients = []
    for scaled in (False, True):
        loss = (weight.sin() ** 2).sum()
        (scale.scaled(loss) if scaled else loss).backward()
        if scaled:
            scale.unscale([weight])
        gradients.append(weight.grad)
        weight.grad = None
    assert torch.equal(*gradients)


def test_it_never_falls_below_one() -> None:
    scale = LossScale(2.0)
    assert not scale.at_its_smallest
    for _ in range(3):
        scale.update(False)
    assert scale.scale == 1.0 and scale.at_its_smallest


class PulledPlug(BaseException):
    """Stands for a death of the process."""


def half(folder: Path, model: Path, name: str) -> dict[str, Any]:
    values = settings(folder, model, name, train={"max_steps": 12, "save_steps": 4, "eval_steps": 12})
    return {**values, "dtype": "float16"}


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the CPU train in float16, which it computes as a GPU does, only slower."""
    monkeypatch.setattr(base, "check_dtype", lambda config, device: None)


@pytest.mark.slow
def test_float16_is_trained_and_a_resumed_run_has_the_same_scale(
    model_folder: Path, tmp_path: Path, on_a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**23)  # overflows at first
    notes: list[str] = []
    whole = lamina.train(half(tmp_path, model_folder, "whole"), notes_into(notes))
    assert any("the gradient overflowed in float16" in note for note in notes)
    assert whole.summary is not None and whole.summary.skipped_steps >= 1
    lock = read_adapter(whole.adapter).lock
    assert lock is not None and lock.base_dtype == "float16"

    def cut(event: Event) -> None:
        if event.kind == "checkpoint" and event.step == 8:
            raise PulledPlug

    values = half(tmp_path, model_folder, "parts")
    with pytest.raises(PulledPlug):
        lamina.train(values, cut)
    saved = newest_checkpoint(tmp_path / "parts" / "checkpoints")
    assert saved is not None and '"loss_scale": ' in (saved / "state.json").read_text()
    again = lamina.train(values, resume=True)
    assert read_adapter(again.adapter).digest == read_adapter(whole.adapter).digest
    assert lamina.load(again.path, dtype="float32").certify() is not None


def test_the_cpu_refuses_float16_and_says_why(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dtype: float16 is for GPUs.*loses nothing in float32.*set it to auto"):
        lamina.train(half(tmp_path, model_folder, "run"))
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("capability", "dtype", "reason"),
    [
        ((7, 0), torch.float16, "multiplies no bfloat16 in hardware. Its range is small, so the loss is scaled"),
        ((8, 0), torch.bfloat16, "which a card multiplies in hardware"),
    ],
)
def test_a_gpu_gets_what_it_multiplies(
    capability: tuple[int, int], dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert choose_dtype("auto", GPU) == dtype
    assert reason in explain_dtype(dtype, GPU)


def test_a_cpu_without_bfloat16_says_why_it_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_features", dict)
    assert choose_dtype("auto", CPU) == torch.float32
    assert "float32, because this CPU multiplies no bfloat16" in explain_dtype(torch.float32, CPU)


def test_the_device_is_that_which_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_device().type == "cuda"
    with on_device("cpu") as device:
        assert device == default_device() == CPU
        with on_device("auto") as inner:
            assert inner == CPU
    assert default_device().type == "cuda"
    assert find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match=r"'cuda:2' is not a device of this machine.*cpu, cuda, cuda:0, cuda:1"):
        find_device("cuda:2")


def test_a_run_on_a_device_that_is_not_there_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"device: 'cuda' is not here"):
        lamina.train({**settings(tmp_path, model_folder), "device": "cuda"})
    with pytest.raises(ConfigError, match="device"):
        load_config({"data": {"train": "x"}, "device": "gpu"})
