"""The layer with a matrix of few parameters beside it, against the matrix itself in plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from lamina.compute.ops.delta_linear import Delta, Hadamard, Kronecker, delta_linear
from lamina.compute.weights import freeze_linear

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}


def hadamard(A1: torch.Tensor, B1: torch.Tensor, A2: torch.Tensor, B2: torch.Tensor) -> torch.Tensor:
    return (A1 @ B1) * (A2 @ B2)


# in 6 and out 20; the Kronecker's sides are all different, so that none can be taken for another.
KINDS = {
    "hadamard": (Hadamard, hadamard, [(20, 3), (3, 6), (20, 3), (3, 6)]),
    "kronecker": (Kronecker, torch.kron, [(4, 2), (5, 3)]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("linear", ["linear", "linear without bias", "conv1d"])
@pytest.mark.parametrize("shape", [(1, 1, 6), (3, 5, 6), (11, 6)])
def test_forward_and_gradients(kind: str, dtype: torch.dtype, linear: str, shape: tuple[int, ...]) -> None:
    delta, matrix, shapes = KINDS[kind]
    module = Conv1D(20, 6) if linear == "conv1d" else nn.Linear(6, 20, bias=linear == "linear")
    frozen = freeze_linear(module.to(dtype).requires_grad_(False))
    assert frozen is not None
    master = torch.float64 if dtype == torch.float64 else torch.float32
    factors = [torch.randn(shape, dtype=master) for shape in shapes]
    x, grad = torch.randn(shape).to(dtype), torch.randn(*shape[:-1], 20).to(dtype)

    ours = [t.clone().requires_grad_() for t in (x, *factors)]
    y = delta_linear(ours[0], frozen, delta, tuple(ours[1:]))
    y.backward(grad)
    plain = [t.clone().to(master).requires_grad_() for t in (x, *factors)]
    bias = None if module.bias is None else module.bias.to(master)
    expected = F.linear(plain[0], frozen.weight(master) + matrix(*plain[1:]), bias)
    expected.backward(grad.to(master))

    assert y.dtype == dtype
    tolerance = TOLERANCE[dtype]
    for got, want in zip([y, *(t.grad for t in ours)], [expected, *(t.grad for t in plain)], strict=True):
        assert got is not None and want is not None
        assert got.dtype in (dtype, master)
        scale = float(want.detach().abs().max())
        torch.testing.assert_close(got.to(master), want, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("delta", [Hadamard, Kronecker])
def test_the_forward_keeps_the_input_and_the_factors_alone(delta: type[Delta]) -> None:
    frozen = freeze_linear(nn.Linear(36, 36).requires_grad_(False))
    assert frozen is not None
    shapes = [(36, 2), (2, 36), (36, 2), (2, 36)] if delta is Hadamard else [(6, 6), (6, 6)]
    factors = tuple(torch.randn(shape, requires_grad=True) for shape in shapes)
    x = torch.randn(50, 36)
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        delta_linear(x, frozen, delta, factors)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (x, *factors)}


@pytest.mark.parametrize("delta", [Hadamard, Kronecker])
def test_no_gradient_is_made_for_an_input_that_needs_none(delta: type[Delta]) -> None:
    frozen = freeze_linear(nn.Linear(4, 4).requires_grad_(False))
    assert frozen is not None

    def fail(grad: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the base product of the backward was made for nothing")

    frozen.matmul_t = fail
    shapes = [(4, 2), (2, 4), (4, 2), (2, 4)] if delta is Hadamard else [(2, 2), (2, 2)]
    factors = tuple(torch.randn(shape, requires_grad=True) for shape in shapes)
    delta_linear(torch.randn(3, 4), frozen, delta, factors).sum().backward()
    assert all(factor.grad is not None for factor in factors)
