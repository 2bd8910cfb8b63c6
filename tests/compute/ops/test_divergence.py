"""Chunked divergences: against plain autograd in float64, against TRL, and properties of a divergence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lamina.compute.ops.divergence import chunked_divergence, chunked_divergence_autograd, divergence
from lamina.structure.head import LogitTransform

TRANSFORMS = [LogitTransform(), LogitTransform(0.25), LogitTransform(1.0, 3.0), LogitTransform(0.5, 2.0)]
V, D = 31, 12


def case(rows: int) -> tuple[torch.Tensor, torch.Tensor, nn.Linear, nn.Linear]:
    """Hidden states of a student, and of a teacher of another width, with their heads."""
    torch.manual_seed(rows)
    heads = [nn.Linear(width, V, bias=True).requires_grad_(False) for width in (D, 7)]
    return (2 * torch.randn(rows, D)).requires_grad_(), 2 * torch.randn(rows, 7), *heads


def plain(
    hidden: torch.Tensor,
    teacher: torch.Tensor,
    heads: tuple[nn.Linear, nn.Linear],
    transform: LogitTransform,
    beta: float,
    temperature: float,
) -> torch.Tensor:
    student = (transform(hidden @ heads[0].weight.double().T + heads[0].bias.double()) / temperature).log_softmax(-1)
    other = ((teacher.double() @ heads[1].weight.double().T + heads[1].bias.double()) / temperature).log_softmax(-1)
    return divergence(student, other, beta)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("trained_head", [False, True])
def test_values_and_gradients(transform: LogitTransform, beta: float, temperature: float, trained_head: bool) -> None:
    hidden, teacher, *heads = case(17)
    wide = hidden.detach().double().requires_grad_()
    expected = plain(wide, teacher, (heads[0], heads[1]), transform, beta, temperature)
    if trained_head:
        logits_of = lambda h: transform(heads[0](h))  # noqa: E731
        got = chunked_divergence_autograd(hidden, teacher, logits_of, heads[1], beta, temperature, V, V * 5)
    else:
        got = chunked_divergence(hidden, teacher, heads[0], transform, heads[1], beta, temperature, V * 5)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    factors = torch.logspace(-3, 2, 17)
    (grad,) = torch.autograd.grad((got * factors).sum(), hidden)
    (expected_grad,) = torch.autograd.grad((expected * factors.double()).sum(), wide)
    size = expected_grad.norm(dim=1, keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(grad.double() / size, expected_grad / size, rtol=0, atol=1e-4)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_as_in_trl(beta: float, temperature: float) -> None:
    trainer = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    hidden, teacher, *heads = case(23)
    student_logits, teacher_logits = heads[0](hidden), heads[1](teacher)
    theirs = trainer.GKDTrainer.generalized_jsd_loss(
        student_logits[None], teacher_logits[None], beta=beta, temperature=temperature, num_items_in_batch=23
    )
    ours = (
        chunked_divergence(hidden, teacher, heads[0], LogitTransform(), heads[1], beta, temperature, V * 7).sum() / 23
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, hidden)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_as_in_trls_chunked_loss(beta: float) -> None:
    trainer = pytest.importorskip("trl.trainer.distillation_trainer")
    hidden, teacher, *heads = case(23)
    mask = torch.arange(23) % 3 != 0
    theirs, _, count = trainer._chunked_divergence_loss(
        hidden[None],
        teacher[None],
        heads[0].weight,
        heads[1].weight,
        mask[None],
        beta,
        student_lm_head_bias=heads[0].bias,
        teacher_lm_head_bias=heads[1].bias,
    )
    each = chunked_divergence(hidden[mask], teacher[mask], heads[0], LogitTransform(), heads[1], beta, 1.0, V * 7)
    torch.testing.assert_close(each.sum() / float(count), theirs, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(0, 60), chunk=st.integers(1, 40), beta=st.sampled_from([0.0, 0.25, 1.0]))
def test_every_number_of_rows(rows: int, chunk: int, beta: float) -> None:
    hidden, teacher, *heads = case(rows)
    got = chunked_divergence(hidden, teacher, heads[0], LogitTransform(), heads[1], beta, 1.0, V * chunk)
    expected = plain(hidden.detach().double(), teacher, (heads[0], heads[1]), LogitTransform(), beta, 1.0)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert (got >= -1e-6).all()
    same = chunked_divergence(hidden, hidden.detach(), heads[0], LogitTransform(), heads[0], beta, 1.0, V * chunk)
    torch.testing.assert_close(same, torch.zeros(rows), rtol=0, atol=1e-5)
    if rows:
        (grad,) = torch.autograd.grad(same.sum(), hidden)
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-5)
