"""The hot path on tensors that say they are on CUDA: no tensor of the CPU gets among them, and no operation refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from lamina.compute.ops import flash
from tests.support.fake_cuda_cases import cases

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By case. In a process of its own: what is pretended holds for the whole process."""
    folder = tmp_path_factory.mktemp("fake-cuda")
    command = [sys.executable, "-m", "tests.support.fake_cuda_cases", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert run.returncode == 0, run.stderr[-2000:]
    found = map(json.loads, run.stdout.splitlines())
    return {line["case"]: line for line in found}


@pytest.mark.parametrize("case", [name for name, _ in cases()])
def test_stays_on_the_device(results: dict[str, dict[str, Any]], case: str) -> None:
    assert results[case]["problem"] is None


def test_signatures_of_the_flash_operations() -> None:
    forward, backward = (
        [(argument.name, str(argument.type)) for argument in operation.default._schema.arguments]
        for operation in (torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward)
    )
    call = ["cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal"]
    options = ["scale", "window_size_left", "window_size_right"]
    names = [name for name, _ in forward]
    assert names[:13] == ["query", "key", "value", *call, "return_debug_mask", *options]
    inputs = ["grad_out", "query", "key", "value", "out", "logsumexp"]
    assert [name for name, _ in backward] == [*inputs, *call, "rng_state", "unused", *options]
    outputs = [result.name for result in torch.ops.aten._flash_attention_forward.default._schema.returns]
    assert outputs == ["output", "softmax_logsumexp", "rng_state", "unused", "debug_attn_mask"]


@pytest.mark.parametrize(
    ("head", "value", "dtype", "softcap", "takes"),
    [
        (64, 64, torch.bfloat16, None, True),
        (256, 256, torch.float16, None, True),
        (64, 64, torch.float32, None, False),
        (20, 20, torch.bfloat16, None, False),
        (264, 264, torch.bfloat16, None, False),
        (64, 32, torch.bfloat16, None, False),
        (64, 64, torch.bfloat16, 50.0, False),
    ],
)
def test_flash_takes_what_its_kernel_takes(
    monkeypatch: pytest.MonkeyPatch, head: int, value: int, dtype: torch.dtype, softcap: float | None, takes: bool
) -> None:
    class OnCuda(torch.Tensor):
        device = torch.device("cuda", 0)

    monkeypatch.setattr(flash, "runs_on", lambda device: True)
    q, v = (torch.empty(3, 2, size, dtype=dtype).as_subclass(OnCuda) for size in (head, value))
    assert flash.supports(q, v, softcap) == takes
    monkeypatch.setattr(flash, "runs_on", lambda device: False)
    assert not flash.supports(q, v, softcap)


def test_the_same_bits_are_asked_for_and_the_users_setting_comes_back() -> None:
    assert torch.get_deterministic_debug_mode() == 0
    with flash._same_bits():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_deterministic_debug_mode() == 0
