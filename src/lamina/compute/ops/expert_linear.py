"""A linear layer for each expert of a mixture, with a low-rank path each: one product per expert over its rows.

    y_t = x_t W_e^T + b_e + s (drop(x_t) R_e^T) L_e^T        for every row t of expert e

The rows are sorted by expert, so those of one expert are contiguous. W and b are frozen and their gradients are never
formed; for the factors they are rank-sized:

    h = s drop(x) R_e^T     gh = s (g L_e)     dL_e = g^T h     dR_e = gh^T drop(x)     dx = g W_e + drop'(gh R_e)

L and R are float32 master weights, rounded to x's dtype for the products, as in `ops/lora_linear.py`. An expert
without a row takes no product, and its factors' gradients are zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lamina.compute.kernels import as_in_forward, chosen_backend, kernels_for
from lamina.compute.ops.dropout import Dropout, MaskedDropout, draw_dropout
from lamina.compute.weights.experts import ExpertWeights


@dataclass(frozen=True)
class ExpertFactors:
    """Low-rank factors of all experts: W_e becomes W_e + scaling L_e R_e.

    Attributes:
        L: (experts, out, r), float32.
        R: (experts, r, in), float32.
        scaling: s.
        dropout: Probability of dropping an element of the path's input.
    """

    L: torch.Tensor
    R: torch.Tensor
    scaling: float
    dropout: float = 0.0


def expert_linear(
    x: torch.Tensor,
    weights: ExpertWeights,
    counts: Sequence[int],
    bias: torch.Tensor | None = None,
    factors: ExpertFactors | None = None,
) -> torch.Tensor:
    """Computes each expert's linear layer on its rows.

    Args:
        x: Input, (S, in), sorted by expert, in the compute dtype.
        weights: W of each expert.
        counts: How many rows each expert has; their sum is S.
        bias: b, (experts, out), or None.
        factors: Those of the low-rank path, or None.

    Returns:
        y, (S, out), in x's dtype.
    """
    L, R, scaling, dropout = None, None, 0.0, None
    if factors is not None:
        L, R, scaling = factors.L, factors.R, factors.scaling
        dropout = draw_dropout(x, factors.dropout) if factors.dropout > 0.0 else None
    return _ExpertLinear.apply(x, L, R, weights, tuple(counts), bias, scaling, dropout)  # pyright: ignore[reportReturnType]


class _ExpertLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        L: torch.Tensor | None,
        R: torch.Tensor | None,
        weights: ExpertWeights,
        counts: tuple[int, ...],
        bias: torch.Tensor | None,
        scaling: float,
        dropout: Dropout | None,
    ) -> torch.Tensor:
        seen = x if dropout is None else dropout.apply(x)
        y = x.new_empty(len(x), weights.out_features)
        h = None if R is None else x.new_empty(len(x), R.shape[1])
        for expert, rows in _rows_by_expert(counts):
            own, out, W = x[rows], y[rows], weights.matrix(expert, x.dtype)
            if bias is None:
                torch.mm(own, W.T, out=out)
            else:
                torch.addmm(bias[expert].to(x.dtype), own, W.T, out=out)
            if L is not None and R is not None and h is not None:
                torch.mm(seen[rows], (R[expert] * scaling).to(x.dtype).T, out=h[rows])
                out.addmm_(h[rows], L[expert].to(x.dtype).T)
        # Only R's gradient needs x: with frozen R (LoRA-FA), what is saved is rank-sized.
        kept_x = x if ctx.needs_input_grad[2] else None
        # A stored mask is saved as a tensor, so that checkpointing sees it and frees it.
        mask, ctx.counted = None, dropout
        if isinstance(dropout, MaskedDropout):
            mask, ctx.counted, ctx.factor = dropout.mask, None, dropout.factor
        ctx.save_for_backward(kept_x, L, R, h, mask)
        ctx.weights, ctx.counts, ctx.scaling, ctx.backend = weights, counts, scaling, chosen_backend()
        return y

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, L, R, h, mask = ctx.saved_tensors
        dropout: Dropout | None = ctx.counted if mask is None else MaskedDropout(mask, ctx.factor)
        g, weights, wants_dx = grads[0].contiguous(), ctx.weights, ctx.needs_input_grad[0]
        dx = g.new_empty(len(g), weights.in_features) if wants_dx else None
        dL = torch.zeros_like(L) if ctx.needs_input_grad[1] else None
        dR = torch.zeros_like(R) if ctx.needs_input_grad[2] else None
        seen = x if x is None or dropout is None else dropout.apply(x)
        through = None if dropout is None or dx is None else torch.empty_like(dx)
        for expert, rows in _rows_by_expert(ctx.counts):
            own = g[rows]
            if dx is not None:
                torch.mm(own, weights.matrix(expert, g.dtype), out=dx[rows])
            if L is None:
                continue
            gh = own @ (L[expert] * ctx.scaling).to(g.dtype)
            if through is not None:
                torch.mm(gh, R[expert].to(g.dtype), out=through[rows])
            elif dx is not None:
                dx[rows].addmm_(gh, R[expert].to(g.dtype))
            kernels = kernels_for(own)
            if dR is not None and seen is not None:
                kernels.narrow_product(gh, seen[rows], dR[expert], 1.0)
            if dL is not None:
                kernels.narrow_product(h[rows], own, dL[expert].T, 1.0)
        if through is not None and dropout is not None:
            dropout.add_(dx, through)
        return dx, dL, dR, None, None, None, None, None


def _rows_by_expert(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Yields each expert that has rows, with the slice of its rows."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(start, start + count)
        start += count
