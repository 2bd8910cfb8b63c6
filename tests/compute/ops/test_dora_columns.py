"""DoRA's parts: norms without the weight, and scaled columns in one linear and in a group, against plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lamina.compute.ops.dora import row_norms, row_squares
from lamina.compute.ops.linear_group import LinearGroup
from lamina.compute.ops.lora_linear import lora_linear
from lamina.compute.ops.row_forms import LowRank
from lamina.compute.weights import freeze_linear


def linear(out: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(24, out, bias=bias).requires_grad_(False)


def factors(out: int, r: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A, B = torch.randn(r, 24, generator=generator), torch.randn(out, r, generator=generator)
    columns = 0.5 + torch.rand(out, generator=generator)
    return A.requires_grad_(), B.requires_grad_(), columns.requires_grad_()


def test_row_norms_are_those_of_the_whole_weight() -> None:
    module = linear(17)
    frozen = freeze_linear(module)
    assert frozen is not None
    A, B, _ = factors(17)
    with torch.no_grad():
        expected = (module.weight + 0.7 * B @ A).norm(dim=1)
    torch.testing.assert_close(row_norms(frozen, row_squares(frozen), A, B, 0.7), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_scaled_columns_of_one_linear(bias: bool) -> None:
    module = linear(17, bias)
    frozen = freeze_linear(module)
    assert frozen is not None
    A, B, columns = factors(17)
    x, grad = torch.randn(2, 5, 24, requires_grad=True), torch.randn(2, 5, 17)
    ours = lora_linear(x, frozen, A, B, 0.7, columns=columns)
    got = torch.autograd.grad(ours, [x, A, B, columns], grad)
    product = columns * (x @ (module.weight + 0.7 * B @ A).T)
    theirs = product + module.bias if bias else product
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(got, torch.autograd.grad(theirs, [x, A, B, columns], grad), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("members")
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_group_in_which_one_of_two_has_scaled_columns(bias: bool, residual: bool) -> None:
    modules = [linear(17, bias), linear(10, bias, seed=2)]
    weights = [module.weight.clone() for module in modules]
    (A, B, columns), (A2, B2, _) = factors(17), factors(10, seed=3)
    tensors = [A, B, columns, A2, B2]
    x, grad = torch.randn(9, 24), torch.randn(9, 27)
    added = torch.randn(9, 27) if residual else None
    x_plain = x.clone().requires_grad_()
    parts = [
        columns * (x_plain @ (weights[0] + 0.7 * B @ A).T),
        x_plain @ (weights[1] + 0.7 * B2 @ A2).T,
    ]
    theirs = torch.cat([p + m.bias if bias else p for p, m in zip(parts, modules, strict=True)], 1)
    theirs = theirs if added is None else theirs + added
    expected = torch.autograd.grad(theirs, [x_plain, *tensors], grad)

    group = LinearGroup(modules, [3, 3])
    paths = [LowRank(A, B, 0.7, 0.0, columns), LowRank(A2, B2, 0.7, 0.0)]
    group.refresh(paths)
    x_ext = torch.cat([x, torch.zeros(9, group.extra_width)], 1)
    with torch.no_grad():
        ours, state = group.forward(x_ext, paths, added)
        through = group.backward_scaling(grad, state)
        dx, gh = group.backward_input(through, state, paths)
        grads = group.backward_paths(through, gh, x, state.h, state, paths)
    torch.testing.assert_close(ours, theirs.detach())
    torch.testing.assert_close([dx, *grads], list(expected), rtol=1e-4, atol=1e-4)
