"""The hot path on CUDA, by the same code: run with `make gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lamina
from lamina.compute.fusion import fast_path
from lamina.compute.kernels import use_backend
from lamina.compute.ops.attention import (
    AttentionSettings,
    attention_backward,
    attention_forward,
    packed_attention,
)
from tests.support.hot_path import loss_and_gradients, with_adapter
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import write_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_fused_is_unfused(family: str, dtype: torch.dtype, backend: str) -> None:
    injection = with_adapter(family, dtype, model=build_model(family, dtype).to("cuda"))
    with packed_attention(injection.model), use_backend("plain"):
        loss, grads = loss_and_gradients(injection, "cuda")
    with fast_path(injection.model, kernels=backend) as report:
        fused_loss, fused = loss_and_gradients(injection, "cuda")
    assert report.fused == (0 if family == "gpt2" else 2)
    assert fused_loss == pytest.approx(loss, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)
    distance = sum(float((fused[n] - grads[n]).square().sum()) for n in grads) ** 0.5
    norm = sum(float(g.square().sum()) for g in grads.values()) ** 0.5
    assert distance / norm < (0.03 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("window", [None, 33])
def test_flash_attention_is_plain_attention(window: int | None) -> None:
    lengths, heads, key_heads, size = [5, 64, 131], 4, 2, 64
    widths = [heads * size, key_heads * size, key_heads * size]
    torch.manual_seed(0)
    qkv, grad = torch.randn(sum(lengths), sum(widths)), torch.randn(sum(lengths), heads, size)
    settings = AttentionSettings(lengths, size**-0.5, window, None)
    results = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        q, k, v = (part.unflatten(1, (-1, size)) for part in qkv.to(device, dtype).split(widths, 1))
        out, grads = torch.empty_like(q), torch.empty(qkv.shape, device=device, dtype=dtype)
        parts = tuple(part.unflatten(1, (-1, size)) for part in grads.split(widths, 1))
        state = attention_forward(q, k, v, settings, out)
        attention_backward(q, k, v, out, grad.to(device, dtype), settings, state, parts)
        results.append([tensor.float().cpu() for tensor in (out, *parts)])
    for ours, theirs in zip(*results, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-2


def test_a_run_from_data_to_adapter(tmp_path: Path) -> None:
    model = tmp_path / "model"
    build_model("llama", vocab_size=len(build_tokenizer())).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    run = lamina.train(
        {
            "model": str(model),
            "data": {"train": str(write_rows(tmp_path / "rows.jsonl")), "max_length": 128},
            "method": {"type": "lora", "r": 4},
            "train": {"max_steps": 6, "learning_rate": 5e-3},
            "output_dir": str(tmp_path / "run"),
        }
    )
    assert run.summary is not None
    assert run.summary.train_loss_last < run.summary.train_loss_first
