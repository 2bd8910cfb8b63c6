"""Cross entropy over supervised tokens only, in chunks, with the gradient computed in the forward.

The logits of the whole batch never exist at once. For each chunk of hidden states they are computed, reduced to the
loss and to the gradient of the hidden states, and freed. The backward needs one tensor of the size of the hidden
states.
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


def chunked_cross_entropy(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    linear: nn.Linear,
    transform: LogitTransform,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """Computes the sum of -log p(target) for a frozen head.

    Args:
        hidden: (N, D), in the compute dtype.
        targets: (N,), int64.
        linear: The head, with weight (V, D); it gets no gradient.
        transform: The transform of the head's product into logits.
        chunk_elements: Upper bound on the elements of one chunk's logits.

    Returns:
        A float32 scalar.
    """
    rows = rows_of_a_chunk(hidden, linear.weight.shape[0], chunk_elements)
    return _ChunkedCrossEntropy.apply(hidden, targets, linear.weight, linear.bias, transform, rows)  # pyright: ignore[reportReturnType]


def chunked_cross_entropy_autograd(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    linear: nn.Module,
    transform: LogitTransform,
    vocabulary: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """Computes the same sum for a head that is trained or has an adapter; the backward recomputes each chunk.

    Takes one head product more than `chunked_cross_entropy`, with the same memory.
    """
    rows = rows_of_a_chunk(hidden, vocabulary, chunk_elements)

    def chunk_loss(hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        count = len(hidden_ND)
        if hidden_ND.device.type == "cpu":
            hidden_ND = pad_chunk(hidden_ND, rows)
        logits_NV = linear(hidden_ND)[:count]
        return F.cross_entropy(transform(logits_NV).float(), targets_N, reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    for h_ND, t_N in zip(hidden.split(rows), targets.split(rows), strict=True):
        part: Any = checkpoint(chunk_loss, h_ND, t_N, use_reentrant=False, context_fn=checkpoint_contexts)
        total = total + part
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
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
        grad_ND = torch.empty_like(hidden) if wants_grad else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        kernels, logits = kernels_for(hidden), hidden.new_empty(padded_rows(len(hidden), rows), len(weight))
        for first in range(0, hidden.shape[0], rows):
            chunk = slice(first, first + rows)
            hidden_CD, count = hidden[chunk], hidden[chunk].shape[0]
            if count < rows:
                hidden_CD = pad_chunk(hidden_CD, rows)
            logits_CV = torch.mm(hidden_CD, weight.T, out=logits[: len(hidden_CD)])
            if bias is not None:
                logits_CV += bias
            losses_C = kernels.cross_entropy_(
                logits_CV[:count], targets[chunk], transform.multiplier, transform.softcap, wants_grad
            )
            total += losses_C.sum()
            if grad_ND is not None:
                grad_ND[chunk] = torch.mm(logits_CV, weight)[
                    :count
                ]  # the kernel has replaced the logits by their gradient
        ctx.save_for_backward(grad_ND)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype), None, None, None, None, None
