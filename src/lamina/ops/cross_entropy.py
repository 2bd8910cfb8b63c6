"""Cross entropy over supervised tokens only, in chunks, with its gradient computed in the forward.

The logits of the whole batch never exist: for each chunk of hidden states they are made, turned into the loss and into
the gradient of the hidden states, and dropped. What the backward needs is one tensor of the size of the hidden states.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lamina.kernels import checkpoint_contexts, kernels_for
from lamina.models.head import LogitTransform
from lamina.ops.shapes import repeating_size

# Logits of a chunk: 2**25 elements are 64 MiB in bfloat16.
CHUNK_ELEMENTS = 2**25

# Rows of a chunk on a CPU: a multiple of 16 where there are so many, and not more than this. A row of 49,152 logits and
# their gradient takes 0.22 ms with 336 rows, 0.26 with 341, and 0.32 with 360, where the gradient's product halves its
# rate; with few rows both products are slow, 0.30 ms with 128.
_ROWS_STEP, _MOST_ROWS = 16, 336


def chunked_cross_entropy(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    linear: nn.Linear,
    transform: LogitTransform,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """Sum of -log p(target) for a frozen head.

    Args:
        hidden: (N, D), in the compute dtype.
        targets: (N,), int64.
        linear: The head, weight (V, D); it gets no gradient.
        transform: What follows the head's product.
        chunk_elements: Bound on the elements of one chunk's logits.

    Returns:
        A float32 scalar.
    """
    rows = max(1, chunk_elements // linear.weight.shape[0])
    if hidden.device.type == "cpu":
        rows = min(rows, _MOST_ROWS)
        rows -= rows % _ROWS_STEP if rows > _ROWS_STEP else 0
    return _ChunkedCrossEntropy.apply(hidden, targets, linear.weight, linear.bias, transform, rows)  # pyright: ignore[reportReturnType]


def chunked_cross_entropy_autograd(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    linear: nn.Module,
    transform: LogitTransform,
    vocabulary: int,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> torch.Tensor:
    """The same sum for a head that is trained or carries an adapter: chunks are recomputed in the backward.

    Slower than `chunked_cross_entropy` by one more head product, with the same memory.
    """
    rows = max(1, chunk_elements // vocabulary)

    def chunk_loss(hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(transform(linear(hidden_ND)).float(), targets_N, reduction="sum")

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
        kernels, logits = kernels_for(hidden), hidden.new_empty(min(rows, repeating_size(len(hidden))), len(weight))
        for first in range(0, hidden.shape[0], rows):
            chunk = slice(first, first + rows)
            hidden_CD, count = hidden[chunk], hidden[chunk].shape[0]
            if count < rows:  # filled up with zeros, so that its shape comes again
                hidden_CD = F.pad(hidden_CD, (0, 0, 0, min(rows, repeating_size(count)) - count))
            logits_CV = torch.mm(hidden_CD, weight.T, out=logits[: len(hidden_CD)])
            if bias is not None:
                logits_CV += bias
            losses_C = kernels.cross_entropy_(
                logits_CV[:count], targets[chunk], transform.multiplier, transform.softcap, wants_grad
            )
            total += losses_C.sum()
            if grad_ND is not None:
                grad_ND[chunk] = torch.mm(logits_CV, weight)[:count]  # the logits are their gradient by now
        ctx.save_for_backward(grad_ND)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grads[0].to(grad_ND.dtype), None, None, None, None, None
