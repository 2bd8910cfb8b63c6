"""Chunked cross entropy against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lamina.compute.ops.cross_entropy import chunked_cross_entropy, chunked_cross_entropy_autograd
from lamina.structure.head import LogitTransform

TRANSFORMS = [LogitTransform(), LogitTransform(0.25), LogitTransform(1.0, 3.0), LogitTransform(0.5, 2.0)]


def case(dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    torch.manual_seed(0)
    linear = nn.Linear(12, 31, bias=bias).to(dtype).requires_grad_(False)
    hidden = (3 * torch.randn(17, 12)).to(dtype).requires_grad_()
    return hidden, torch.randint(0, 31, (17,)), linear


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_elements", [1, 31 * 5, 10**6])
@pytest.mark.parametrize("trained_head", [False, True])
def test_loss_and_gradient(transform: LogitTransform, bias: bool, chunk_elements: int, trained_head: bool) -> None:
    hidden, targets, linear = case(torch.float32, bias)
    expected = F.cross_entropy(transform(linear(hidden)), targets, reduction="sum")
    (expected_grad,) = torch.autograd.grad(2.5 * expected, hidden)
    if trained_head:
        loss = chunked_cross_entropy_autograd(hidden, targets, linear, transform, 31, chunk_elements)
    else:
        loss = chunked_cross_entropy(hidden, targets, linear, transform, chunk_elements)
    (grad,) = torch.autograd.grad(2.5 * loss, hidden)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)


def test_bf16_matches_an_upcast_of_the_same_logits() -> None:
    hidden, targets, linear = case(torch.bfloat16, bias=False)
    expected = F.cross_entropy(linear(hidden).float(), targets, reduction="sum")
    (expected_grad,) = torch.autograd.grad(expected, hidden)
    loss = chunked_cross_entropy(hidden, targets, linear, LogitTransform(), 31 * 4)
    (grad,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-2, atol=1e-2)


def test_a_trained_head_gets_its_gradient() -> None:
    hidden, targets, linear = case(torch.float32, bias=True)
    linear.requires_grad_(True)
    chunked_cross_entropy_autograd(hidden, targets, linear, LogitTransform(), 31, 31 * 5).backward()
    got = linear.weight.grad
    linear.zero_grad()
    F.cross_entropy(linear(hidden), targets, reduction="sum").backward()
    torch.testing.assert_close(got, linear.weight.grad, rtol=1e-5, atol=1e-5)


def test_logits_are_not_kept_for_the_backward() -> None:
    hidden, targets, linear = case(torch.float32, bias=False)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        chunked_cross_entropy(hidden, targets, linear, LogitTransform())
    assert max(saved) <= hidden.numel()


@pytest.mark.parametrize("count", [1, 15, 17, 45, 47, 48, 49, 97, 337])
@pytest.mark.parametrize("rows", [5, 16, 31, 50, 400])
def test_every_number_of_tokens(count: int, rows: int) -> None:
    """Chunks of rounded sizes, the last one filled up."""
    _, _, linear = case(torch.float32, bias=True)
    hidden, targets = torch.randn(count, 12).requires_grad_(), torch.randint(0, 31, (count,))
    expected = F.cross_entropy(linear(hidden), targets, reduction="sum")
    loss = chunked_cross_entropy(hidden, targets, linear, LogitTransform(), 31 * rows)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(value, hidden)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)
