"""Layers that are not fused as a whole but part by part, for every method that this concerns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion import fast_path, fused_layers
from lamina.compute.fusion.parts import attention_forward
from lamina.compute.ops.attention import packed_attention
from lamina.config import METHOD_CONFIGS
from lamina.methods.shared.base import Injection, inject
from tests.support.hot_path import loss_and_gradients, unfused
from tests.support.models_zoo import build_model

METHODS = ("bottleneck", "full", "ia3", "ln_tuning", "loha", "lokr", "prefix_tuning")
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3")


def attached(method: str, family: str, dtype: torch.dtype = torch.float32) -> Injection:
    """A fresh adapter, moved a little so that no gradient is zero by construction."""
    injection = inject(build_model(family, dtype=dtype), METHOD_CONFIGS[method](), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 0.02 * torch.randn(tensor.shape, generator=generator)
    injection.model.train()
    return injection


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients(method: str, family: str, recompute: bool) -> None:
    injection = attached(method, family)
    with unfused(injection.model):
        loss, grads = loss_and_gradients(injection)
    with fast_path(injection.model, recompute) as report:
        assert (report.fused, report.in_parts) == (0, 2)
        assert "part by part" in report.notes[0]
        in_parts, found = loss_and_gradients(injection)
    assert in_parts == pytest.approx(loss, rel=1e-5)
    assert found.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_in_bfloat16(method: str) -> None:
    """As far from transformers' own code as rounding, over all gradients together."""
    injection = attached(method, "llama", torch.bfloat16)
    with unfused(injection.model):
        loss, grads = loss_and_gradients(injection)
    with fast_path(injection.model) as report:
        assert report.in_parts == 2
        in_parts, found = loss_and_gradients(injection)
    assert in_parts == pytest.approx(loss, rel=1e-2)
    distance = sum(float((found[n] - grads[n]).square().sum()) for n in grads) ** 0.5
    assert distance / sum(float(g.square().sum()) for g in grads.values()) ** 0.5 < 0.03


def test_the_model_is_as_before_afterwards() -> None:
    model = attached("ia3", "qwen3").model
    with packed_attention(model), fused_layers(model) as report:
        assert report.in_parts == 2
        assert any("forward" in vars(module) for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_attention_with_a_cache_or_a_mask_is_the_models_own() -> None:
    model = attached("ia3", "llama").model.eval()
    ids = torch.tensor([[5, 6, 7]])
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    for layer in model.model.layers:
        layer.self_attn.forward = attention_forward(layer.self_attn, {})
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected)


def _other_norm(model: PreTrainedModel) -> None:
    """Right on the row of numbers that a norm is tried on, and on no other."""
    norm = model.model.layers[1].input_layernorm
    real = norm.forward

    class Odd(type(norm)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return real(x) * (1.0 if x.dim() == 2 else 0.9)

    norm.__class__ = Odd


def _other_gate(model: PreTrainedModel) -> None:
    mlp = model.model.layers[1].mlp
    real = type(mlp).forward

    class Odd(type(mlp)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 0.9 * real(self, x)

    mlp.__class__ = Odd


@pytest.mark.parametrize("change", [_other_norm, _other_gate])
def test_parts_that_give_other_numbers_are_left_alone(change: Callable[[PreTrainedModel], None]) -> None:
    injection = attached("ia3", "llama")
    change(injection.model)
    with fast_path(injection.model) as report:
        assert (report.fused, report.in_parts) == (0, 1)


def test_a_part_with_another_activation_is_left_and_the_others_are_replaced() -> None:
    injection = attached("lora", "llama")
    for layer in injection.model.model.layers:
        layer.mlp.act_fn = nn.ReLU()
    with unfused(injection.model):
        loss, _ = loss_and_gradients(injection)
    with fast_path(injection.model) as report:
        assert (report.fused, report.in_parts) == (0, 2)
        assert all("forward" not in vars(layer.mlp) for layer in injection.model.model.layers)
        assert loss_and_gradients(injection)[0] == pytest.approx(loss, rel=1e-5)
