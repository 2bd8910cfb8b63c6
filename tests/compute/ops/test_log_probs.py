"""Chunked log-probabilities: against torch's own, in float64, and against TRL's op."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lamina.compute.ops.log_probs import (
    chunked_log_probs,
    chunked_log_probs_autograd,
    measured_log_probs,
    measured_log_probs_autograd,
)
from lamina.structure.head import LogitTransform

TRANSFORMS = [LogitTransform(), LogitTransform(0.25), LogitTransform(1.0, 3.0), LogitTransform(0.5, 2.0)]
V, D = 31, 12


def case(rows: int, dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, torch.Tensor, nn.Linear]:
    torch.manual_seed(rows)
    linear = nn.Linear(D, V, bias=bias).to(dtype).requires_grad_(False)
    hidden = (3 * torch.randn(rows, D)).to(dtype).requires_grad_()
    return hidden, torch.randint(0, V, (rows,)), linear


def reference(
    hidden: torch.Tensor, targets: torch.Tensor, linear: nn.Linear, transform: LogitTransform
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities in float64, with the hidden states that they are a function of."""
    wide = hidden.detach().double().requires_grad_()
    bias = None if linear.bias is None else linear.bias.double()
    logits = transform(nn.functional.linear(wide, linear.weight.double(), bias))
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], wide


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_elements", [1, V * 5, 10**6])
@pytest.mark.parametrize("trained_head", [False, True])
def test_values_and_gradients(transform: LogitTransform, bias: bool, chunk_elements: int, trained_head: bool) -> None:
    """For any function of the log-probabilities, here with factors of very different sizes and both signs."""
    hidden, targets, linear = case(17, torch.float32, bias)
    expected, wide = reference(hidden, targets, linear, transform)
    if trained_head:
        got = chunked_log_probs_autograd(hidden, targets, linear, transform, V, chunk_elements)
    else:
        got = chunked_log_probs(hidden, targets, linear, transform, chunk_elements)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    factors = torch.logspace(-4, 2, 17) * torch.tensor([1.0, -1.0, 0.0]).repeat(6)[:17]
    (grad,) = torch.autograd.grad((got * factors).sum(), hidden)
    (expected_grad,) = torch.autograd.grad((expected * factors.double()).sum(), wide)
    # Row by row: a row with a tiny factor must be as exact as one with a large factor.
    size = expected_grad.norm(dim=1, keepdim=True).clamp_min(1e-30)
    torch.testing.assert_close(grad.double() / size, expected_grad / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("trained_head", [False, True])
def test_a_measure_sees_the_logits_and_changes_nothing(transform: LogitTransform, trained_head: bool) -> None:
    hidden, targets, linear = case(17, torch.float32, bias=True)

    def spread(logits_CV: torch.Tensor) -> torch.Tensor:
        assert logits_CV.dtype == torch.float32 and not logits_CV.requires_grad
        return logits_CV.var(dim=-1)

    if trained_head:
        got, found = measured_log_probs_autograd(hidden, targets, linear, transform, spread, V, V * 5)
        alone = chunked_log_probs_autograd(hidden, targets, linear, transform, V, V * 5)
    else:
        got, found = measured_log_probs(hidden, targets, linear, transform, spread, V * 5)
        alone = chunked_log_probs(hidden, targets, linear, transform, V * 5)
    expected = transform(linear(hidden.detach())).var(dim=-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not found.requires_grad
    torch.testing.assert_close(got, alone, rtol=0, atol=0)
    grads = [torch.autograd.grad(value.sigmoid().sum(), hidden)[0] for value in (got, alone)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(0, 120), chunk=st.integers(1, 70))
def test_every_number_of_rows(rows: int, chunk: int) -> None:
    hidden, targets, linear = case(rows, torch.float32, bias=True)
    expected, wide = reference(hidden, targets, linear, LogitTransform())
    got = chunked_log_probs(hidden, targets, linear, LogitTransform(), V * chunk)
    assert got.shape == (rows,)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(value.sigmoid().sum(), at)[0] for value, at in ((got, hidden), (expected, wide))]
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-6)


def test_bfloat16_rounds_the_scaled_rows_once() -> None:
    hidden, targets, linear = case(40, torch.bfloat16, bias=False)
    expected, wide = reference(hidden, targets, linear, LogitTransform())
    got = chunked_log_probs(hidden, targets, linear, LogitTransform(), V * 16)
    factors = torch.logspace(-6, 3, 40)
    (grad,) = torch.autograd.grad((got * factors).sum(), hidden)
    assert grad.dtype == torch.bfloat16
    (expected_grad,) = torch.autograd.grad((expected * factors.double()).sum(), wide)
    size = expected_grad.norm(dim=1, keepdim=True)
    torch.testing.assert_close(grad.double() / size, expected_grad / size, rtol=0, atol=0.02)


def test_one_tensor_is_saved_and_the_logits_are_not() -> None:
    hidden, targets, linear = case(17, torch.float32, bias=False)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        chunked_log_probs(hidden, targets, linear, LogitTransform())
    assert saved == [hidden.numel()]


def test_nothing_is_saved_without_a_gradient() -> None:
    hidden, targets, linear = case(17, torch.float32, bias=False)
    with torch.no_grad():
        got = chunked_log_probs(hidden, targets, linear, LogitTransform())
    assert not got.requires_grad
    expected = reference(hidden, targets, linear, LogitTransform())[0]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_trained_head_gets_its_gradient() -> None:
    hidden, targets, linear = case(17, torch.float32, bias=True)
    linear.requires_grad_(True)
    chunked_log_probs_autograd(hidden, targets, linear, LogitTransform(), V, V * 5).sigmoid().sum().backward()
    got = linear.weight.grad
    linear.zero_grad()
    linear(hidden).log_softmax(-1).gather(1, targets[:, None]).sigmoid().sum().backward()
    torch.testing.assert_close(got, linear.weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_trls_op_gives_the_same(transform: LogitTransform) -> None:
    kernels = pytest.importorskip("trl.kernels.chunked_logprob")
    hidden, targets, linear = case(23, torch.float32, bias=True)
    theirs = kernels.ChunkedLogProbFunction.apply(
        hidden, linear.weight, linear.bias, targets, 1.0, 8, transform.softcap, transform.multiplier
    )[0]
    ours = chunked_log_probs(hidden, targets, linear, transform, V * 7)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(value.sigmoid().sum(), hidden)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)
