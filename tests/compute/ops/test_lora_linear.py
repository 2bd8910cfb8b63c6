"""The fused layer against ten lines of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from lamina.compute.kernels import use_backend
from lamina.compute.ops.dropout import MaskedDropout
from lamina.compute.ops.lora_linear import lora_linear
from lamina.compute.weights import freeze_linear

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}


def reference(
    x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None, A: torch.Tensor, B: torch.Tensor, s: float
) -> torch.Tensor:
    return F.linear(x, W, b) + s * F.linear(F.linear(x, A.to(x.dtype)), B.to(x.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "linear without bias", "conv1d"])
@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 37, 7), (3, 5, 7), (11, 7)])
def test_forward_and_gradients(dtype: torch.dtype, kind: str, shape: tuple[int, ...]) -> None:
    module = Conv1D(13, 7) if kind == "conv1d" else nn.Linear(7, 13, bias=kind == "linear")
    frozen = freeze_linear(module.to(dtype).requires_grad_(False))
    assert frozen is not None
    A, B = torch.randn(3, 7), torch.randn(13, 3)
    x, grad = torch.randn(shape).to(dtype), torch.randn(*shape[:-1], 13).to(dtype)

    ours = [t.clone().requires_grad_() for t in (x, A, B)]
    y = lora_linear(ours[0], frozen, ours[1], ours[2], 0.5)
    y.backward(grad)
    plain = [t.clone().requires_grad_() for t in (x, A, B)]
    expected = reference(plain[0], frozen.weight(dtype), module.bias, plain[1], plain[2], 0.5)
    expected.backward(grad)

    assert y.dtype == dtype
    assert ours[1].grad is not None
    assert ours[1].grad.dtype == torch.float32
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance * 4)
    for got, want in zip(ours, plain, strict=True):
        scale = float(want.grad.abs().max())
        torch.testing.assert_close(got.grad, want.grad, rtol=tolerance, atol=tolerance * scale)


def test_dropout_drops_and_rescales_the_low_rank_path_alone() -> None:
    torch.manual_seed(3)
    frozen = freeze_linear(nn.Linear(64, 64, bias=False).requires_grad_(False))
    assert frozen is not None
    A, B = torch.eye(64), torch.eye(64)
    x = torch.ones(50, 64)
    path = lora_linear(x, frozen, A, B, 1.0, dropout=0.25) - frozen.matmul(x)
    kept = path.abs() > 0.5
    torch.testing.assert_close(path[kept], torch.full_like(path[kept], 1 / 0.75), rtol=1e-4, atol=1e-4)
    assert 0.7 < kept.float().mean() < 0.8


def test_dropout_gradients_use_the_same_mask() -> None:
    frozen = freeze_linear(nn.Linear(9, 6).requires_grad_(False))
    assert frozen is not None
    A, B = torch.randn(2, 9, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    frozen.base.double()

    def layer(x: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return lora_linear(x, frozen, A, B, 1.5, dropout=0.4)

    inputs = [t.requires_grad_() for t in (torch.randn(4, 9, dtype=torch.float64), A, B)]
    assert torch.autograd.gradcheck(layer, inputs)


def test_a_mask_is_seen_by_checkpointing() -> None:
    """What a function keeps beside its saved tensors stays in memory for every layer at once."""
    frozen = freeze_linear(nn.Linear(9, 6).requires_grad_(False))
    assert frozen is not None
    saved: list[torch.Tensor] = []
    keep: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: saved.append(tensor) or tensor  # noqa: E731
    A, B = torch.randn(2, 9, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    with use_backend("plain"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = lora_linear(torch.randn(5, 9), frozen, A, B, 1.5, dropout=0.4)
    assert [tensor.shape for tensor in saved if tensor.dtype == torch.bool] == [(5, 9)]
    assert y.grad_fn is not None
    assert not any(isinstance(value, MaskedDropout) for value in vars(y.grad_fn).values())


def test_no_rows() -> None:
    frozen = freeze_linear(nn.Linear(9, 6).requires_grad_(False))
    assert frozen is not None
    A, B = torch.randn(2, 9, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    x = torch.empty(0, 9, requires_grad=True)
    y = lora_linear(x, frozen, A, B, 1.5, dropout=0.4)
    y.sum().backward()
    assert y.shape == (0, 6)
    assert x.grad is not None and x.grad.shape == (0, 9)
    assert A.grad is not None and not A.grad.any()


def test_no_gradient_is_made_for_an_input_that_needs_none() -> None:
    frozen = freeze_linear(nn.Linear(4, 4).requires_grad_(False))
    assert frozen is not None

    def fail(grad: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the base product of the backward was made for nothing")

    frozen.matmul_t = fail
    A, B = torch.randn(2, 4, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    lora_linear(torch.randn(3, 4), frozen, A, B, 1.0).sum().backward()
    assert A.grad is not None
    assert B.grad is not None
