"""Log-probabilities of tokens, one for each row of hidden states, in chunks: the op under every loss over answers.

A loss over answers is a function of the log-probabilities of their tokens. The gradient of -log p with respect to a row
of hidden states is the same whatever that loss is; the loss only decides the factor of each row. So the forward
computes these rows once, while the logits of a chunk are there, and the backward scales them:

    d L / d h_n = (d L / d log p_n) (d log p_n / d h_n)

This takes two products with the head (logits, gradient), where recomputing the logits in the backward takes three, and
one saved tensor of the size of the hidden states.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lamina.compute.kernels import checkpoint_contexts, kernels_for
from lamina.compute.ops.chunks import CHUNK_ELEMENTS, pad_chunk, padded_rows, rows_of_a_chunk
from lamina.structure.head import LogitTransform


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
    return _ChunkedLogProbs.apply(hidden, targets, linear.weight, linear.bias, transform, rows)  # pyright: ignore[reportReturnType]


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
    rows = rows_of_a_chunk(hidden, vocabulary, chunk_elements)

    def of_chunk(hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        count = len(hidden_ND)
        if hidden_ND.device.type == "cpu":
            hidden_ND = pad_chunk(hidden_ND, rows)
        return log_probs_of(transform(linear(hidden_ND)[:count]), targets_N)

    parts: list[Any] = [
        checkpoint(of_chunk, h_ND, t_N, use_reentrant=False, context_fn=checkpoint_contexts)
        for h_ND, t_N in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(parts)


def log_probs_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes log p(target) of each row of logits (N, V) in plain torch: (N,), float32 (float64 stays)."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return -F.cross_entropy(wide, targets, reduction="none")


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
    ) -> torch.Tensor:
        wants_grad = ctx.needs_input_grad[0]
        slopes_ND = torch.empty_like(hidden) if wants_grad else None  # d(-log p) / dh
        log_probs_N = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        kernels, logits = kernels_for(hidden), hidden.new_empty(padded_rows(len(hidden), rows), len(weight))
        for first in range(0, len(hidden), rows):
            chunk = slice(first, first + rows)
            hidden_CD, count = hidden[chunk], hidden[chunk].shape[0]
            if count < rows:
                hidden_CD = pad_chunk(hidden_CD, rows)
            logits_CV = torch.mm(hidden_CD, weight.T, out=logits[: len(hidden_CD)])
            if bias is not None:
                logits_CV += bias
            log_probs_N[chunk] = kernels.cross_entropy_(
                logits_CV[:count], targets[chunk], transform.multiplier, transform.softcap, wants_grad
            ).neg_()
            if slopes_ND is not None:
                # The kernel has replaced the logits by their gradient.
                slopes_ND[chunk] = torch.mm(logits_CV, weight)[:count]
        ctx.save_for_backward(slopes_ND)
        return log_probs_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slopes_ND,) = ctx.saved_tensors
        # A row's factor may be tiny or large, so the product is rounded once, from float32.
        grad_ND = torch.mul(slopes_ND, -grads[0].float()[:, None], out=torch.empty_like(slopes_ND))
        return grad_ND, None, None, None, None, None
