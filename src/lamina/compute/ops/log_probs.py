"""Log-probabilities of tokens, one for each row of hidden states, in chunks: the op under every loss over answers.

A loss over answers is a function of the log-probabilities of their tokens. The gradient of -log p with respect to a row
of hidden states is the same whatever that loss is; the loss only decides the factor of each row. So the forward
computes these rows once, while the logits of a chunk are there, and the backward scales them:

    d L / d h_n = (d L / d log p_n) (d log p_n / d h_n)

This takes two products with the head (logits, gradient), where recomputing the logits in the backward takes three, and
one saved tensor of the size of the hidden states.

A loss whose factor depends on the whole distribution, such as its entropy, has it measured while the logits are there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lamina.compute.kernels import checkpoint_contexts, kernels_for
from lamina.compute.ops.chunks import CHUNK_ELEMENTS, pad_chunk, padded_rows, rows_of_a_chunk
from lamina.structure.head import LogitTransform

# From the logits of a chunk (C, V), float32 or float64, to a number for each of its rows (C,), without a gradient.
Measure = Callable[[torch.Tensor], torch.Tensor]


def chunked_log_probs(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    linear: nn.Linear,
    transform: LogitTransform,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """Computes log p(target) of each row, for a frozen head.

    Args:
        hidden: (N, D), in the compute dtype.
        targets: (N,), int64.
        linear: The head, with weight (V, D); it gets no gradient.
        transform: The transform of the head's product into logits.
        chunk_elements: Upper bound on the elements of one chunk's logits.

    Returns:
        (N,), float32.
    """
    rows = rows_of_a_chunk(hidden, linear.weight.shape[0], chunk_elements)
    return _ChunkedLogProbs.apply(hidden, targets, linear.weight, linear.bias, transform, rows, None)  # pyright: ignore[reportReturnType]


def measured_log_probs(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    linear: nn.Linear,
    transform: LogitTransform,
    measure: Measure,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes `chunked_log_probs` and what `measure` finds in each row's logits: twice (N,), float32."""
    rows = rows_of_a_chunk(hidden, linear.weight.shape[0], chunk_elements)
    return _ChunkedLogProbs.apply(hidden, targets, linear.weight, linear.bias, transform, rows, measure)  # pyright: ignore[reportReturnType]


def chunked_log_probs_autograd(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    linear: nn.Module,
    transform: LogitTransform,
    vocabulary: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """Computes the same for a head that is trained or has an adapter; the backward recomputes each chunk.

    Takes one head product more than `chunked_log_probs`, with the same memory.
    """
    return measured_log_probs_autograd(hidden, targets, linear, transform, _nothing, vocabulary, chunk_elements)[0]


def measured_log_probs_autograd(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    linear: nn.Module,
    transform: LogitTransform,
    measure: Measure,
    vocabulary: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes what `measured_log_probs` does for a head that is trained or has an adapter."""
    rows = rows_of_a_chunk(hidden, vocabulary, chunk_elements)

    def of_chunk(hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(hidden_ND)
        if hidden_ND.device.type == "cpu":
            hidden_ND = pad_chunk(hidden_ND, rows)
        logits_NV = transform(linear(hidden_ND)[:count])
        return log_probs_of(logits_NV, targets_N), measured(logits_NV, measure)

    parts: list[Any] = [
        checkpoint(of_chunk, h_ND, t_N, use_reentrant=False, context_fn=checkpoint_contexts)
        for h_ND, t_N in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat([log_probs for log_probs, _ in parts]), torch.cat([found for _, found in parts])


def log_probs_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes log p(target) of each row of logits (N, V) in plain torch: (N,), float32 (float64 stays)."""
    return -F.cross_entropy(_wide(logits), targets, reduction="none")


@torch.no_grad()
def measured(logits: torch.Tensor, measure: Measure) -> torch.Tensor:
    """Applies a measure to logits (N, V): (N,), float32 (float64 stays), without a gradient."""
    return measure(_wide(logits.detach()))


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _nothing(logits: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(len(logits))


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        transform: LogitTransform,
        rows: int,
        measure: Measure | None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        wants_grad = ctx.needs_input_grad[0]
        slopes_ND = torch.empty_like(hidden) if wants_grad else None  # d(-log p) / dh
        log_probs_N = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        found_N = None if measure is None else torch.empty_like(log_probs_N)
        kernels, logits = kernels_for(hidden), hidden.new_empty(padded_rows(len(hidden), rows), len(weight))
        for first in range(0, len(hidden), rows):
            chunk = slice(first, first + rows)
            hidden_CD, count = hidden[chunk], hidden[chunk].shape[0]
            if count < rows:
                hidden_CD = pad_chunk(hidden_CD, rows)
            logits_CV = torch.mm(hidden_CD, weight.T, out=logits[: len(hidden_CD)])
            if bias is not None:
                logits_CV += bias
            if measure is not None and found_N is not None:
                found_N[chunk] = measured(transform(logits_CV[:count].float()), measure)
            log_probs_N[chunk] = kernels.cross_entropy_(
                logits_CV[:count], targets[chunk], transform.multiplier, transform.softcap, wants_grad
            ).neg_()
            if slopes_ND is not None:
                # The kernel has replaced the logits by their gradient.
                slopes_ND[chunk] = torch.mm(logits_CV, weight)[:count]
        ctx.save_for_backward(slopes_ND)
        if found_N is None:
            return log_probs_N
        ctx.mark_non_differentiable(found_N)
        return log_probs_N, found_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes_ND,) = ctx.saved_tensors
        # A row's factor may be tiny or large, so the product is rounded once, from float32.
        grad_ND = torch.mul(slopes_ND, -grads[0].float()[:, None], out=torch.empty_like(slopes_ND))
        return grad_ND, None, None, None, None, None, None
