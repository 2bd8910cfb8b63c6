"""Divergence of a student's distributions from a teacher's, one for each row of hidden states, in chunks.

As for log-probabilities (`log_probs.py`), the gradient of a row is computed in the forward, while the logits of a chunk
are there, and the backward scales the saved rows. With s and t for the log-probabilities of student and teacher, p for
the student's probabilities, and m for the log of the mixture (1 - b) exp(s) + b exp(t):

    b = 0    KL(t || s)                              d / d logits = p - exp(t)
    b = 1    KL(s || t)                              d / d logits = p (s - t - KL(s || t))
    else     b KL(t || m) + (1 - b) KL(s || m)       d / d logits = p (g - sum p g),  g = (1 - b) (s - m)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lamina.compute.kernels import checkpoint_contexts
from lamina.compute.ops.chunks import CHUNK_ELEMENTS, rows_of_a_chunk
from lamina.structure.head import LogitTransform

# From hidden states of the teacher (C, D) to its logits (C, V).
TeacherLogits = Callable[[torch.Tensor], torch.Tensor]


def divergence(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """Computes the divergence of each row, (N,), from log-probabilities (N, V), in plain torch."""
    if beta == 0.0:
        return (teacher.exp() * (teacher - student)).sum(-1)
    if beta == 1.0:
        return (student.exp() * (student - teacher)).sum(-1)
    mixture = _mixture(student, teacher, beta)
    of_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
    return beta * of_teacher + (1 - beta) * (student.exp() * (student - mixture)).sum(-1)


def chunked_divergence(
    hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    linear: nn.Linear,
    transform: LogitTransform,
    teacher_logits: TeacherLogits,
    beta: float,
    temperature: float,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """Computes the divergence of each row, for a student whose head is frozen.

    Args:
        hidden: The student's hidden states, (N, D), in the compute dtype.
        teacher_hidden: The teacher's, (N, its width), without a gradient.
        linear: The student's head, with weight (V, D); it gets no gradient.
        transform: The transform of that product into logits.
        teacher_logits: Computes the teacher's logits of some of its hidden states.
        beta: Which divergence; see the top of the file.
        temperature: What logits are divided by.
        chunk_elements: Upper bound on the elements of one chunk's logits.

    Returns:
        (N,), float32.
    """
    rows = rows_of_a_chunk(hidden, linear.weight.shape[0], chunk_elements)
    settings = (transform, teacher_logits, beta, temperature, rows)
    return _ChunkedDivergence.apply(hidden, teacher_hidden, linear.weight, linear.bias, *settings)  # pyright: ignore[reportReturnType]


def chunked_divergence_autograd(
    hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    student_logits: Callable[[torch.Tensor], torch.Tensor],
    teacher_logits: TeacherLogits,
    beta: float,
    temperature: float,
    vocabulary: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """Computes the same for a head that is trained or has an adapter; the backward recomputes each chunk."""
    rows = rows_of_a_chunk(hidden, vocabulary, chunk_elements)

    def of_chunk(hidden_CD: torch.Tensor, teacher_CD: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher = (teacher_logits(teacher_CD).float() / temperature).log_softmax(-1)
        student = (student_logits(hidden_CD).float() / temperature).log_softmax(-1)
        return divergence(student, teacher, beta)

    parts: list[Any] = [
        checkpoint(of_chunk, h_CD, t_CD, use_reentrant=False, context_fn=checkpoint_contexts)
        for h_CD, t_CD in zip(hidden.split(rows), teacher_hidden.split(rows), strict=True)
    ]
    return torch.cat(parts)


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        teacher_hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        transform: LogitTransform,
        teacher_logits: TeacherLogits,
        beta: float,
        temperature: float,
        rows: int,
    ) -> torch.Tensor:
        wants_grad = ctx.needs_input_grad[0]
        slopes_ND = torch.empty_like(hidden) if wants_grad else None  # d divergence / dh
        values_N = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for first in range(0, len(hidden), rows):
            chunk = slice(first, first + rows)
            logits_CV = transform(F.linear(hidden[chunk], weight, bias).float())
            student = (logits_CV / temperature).log_softmax(-1)
            teacher = (teacher_logits(teacher_hidden[chunk]).float() / temperature).log_softmax(-1)
            values_N[chunk] = divergence(student, teacher, beta)
            if slopes_ND is not None:
                slope_CV = _slope(student, teacher, beta).mul_(transform.multiplier / temperature)
                if transform.softcap is not None:
                    slope_CV *= 1 - (logits_CV / transform.softcap).square()
                torch.mm(slope_CV.to(weight.dtype), weight, out=slopes_ND[chunk])
        ctx.save_for_backward(slopes_ND)
        return values_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes_ND,) = ctx.saved_tensors
        grad_ND = torch.mul(slopes_ND, grads[0].float()[:, None], out=torch.empty_like(slopes_ND))
        return grad_ND, *[None] * 8


def _slope(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """The divergence's gradient with respect to the student's logits (over the temperature), (C, V)."""
    if beta == 0.0:
        return student.exp() - teacher.exp()
    if beta == 1.0:
        gain = student - teacher
    else:
        gain = (1 - beta) * (student - _mixture(student, teacher, beta))
    probabilities = student.exp()
    return probabilities * (gain - (probabilities * gain).sum(-1, keepdim=True))


def _mixture(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
