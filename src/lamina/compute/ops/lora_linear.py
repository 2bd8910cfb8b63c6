"""A frozen linear layer with a LoRA adapter, forward and backward in one autograd function.

    y = x W^T + b + s (drop(x) A^T) B^T

or, with column factors c (DoRA), y = c (x W^T + s (drop(x) A^T) B^T) + b.

Saved for the backward: x, once and in its own dtype; the rank-sized h = s drop(x) A^T; and, with c, the output before
scaling. The gradient of W is never formed, and every other intermediate of the low-rank path is rank-sized:

    gh = s (g B)          dB = g^T h          dA = gh^T drop(x)          dx = g W + drop'(gh A)

A and B are float32 master weights; they are rounded to x's dtype for the products, as autocast would do.
"""

from __future__ import annotations

from typing import Any

import torch

from lamina.compute.kernels import as_in_forward, chosen_backend, kernels_for
from lamina.compute.ops.dropout import Dropout, MaskedDropout, draw_dropout
from lamina.compute.ops.shapes import in_shape
from lamina.compute.weights.frozen import FrozenLinear


def lora_linear(
    x: torch.Tensor,
    frozen: FrozenLinear,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    columns: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes y = x W^T + b + s (drop(x) A^T) B^T, with column factors where they are given.

    Args:
        x: Input, (..., in), in the compute dtype.
        frozen: W and b.
        A: (r, in), float32.
        B: (out, r), float32.
        scaling: s.
        dropout: Probability of dropping an element of the adapter's input (drawn by torch's generator); 0 in
            evaluation.
        columns: c, (out,), float32; None for 1.

    Returns:
        y, (..., out), in x's dtype.
    """
    drawn = draw_dropout(_rows(x), dropout) if dropout > 0.0 else None
    return _LoraLinear.apply(x, A, B, columns, frozen, scaling, drawn)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        columns: torch.Tensor | None,
        frozen: FrozenLinear,
        scaling: float,
        dropout: Dropout | None,
    ) -> torch.Tensor:
        x_TI = _rows(x)
        y_TO = frozen.matmul(x_TI)
        h_TR = (x_TI if dropout is None else dropout.apply(x_TI)) @ A.to(x.dtype).T
        h_TR = h_TR * scaling
        y_TO.addmm_(h_TR, B.to(x.dtype).T)
        # Only A's gradient needs x: with a frozen A (LoRA-FA), what is saved is rank-sized.
        kept_x, product = x if ctx.needs_input_grad[1] else None, None if columns is None else y_TO
        # A stored mask is saved as a tensor, so that checkpointing sees it and frees it.
        mask, ctx.counted = None, dropout
        if isinstance(dropout, MaskedDropout):
            mask, ctx.counted, ctx.factor = dropout.mask, None, dropout.factor
        ctx.save_for_backward(kept_x, A, B, h_TR, columns, product, mask)
        ctx.frozen, ctx.scaling, ctx.backend = frozen, scaling, chosen_backend()
        if columns is not None:
            # c (y - b) + b, written so that y is unchanged where c is 1.
            y_TO = (y_TO * columns + (1.0 - columns) * _bias(frozen)).to(x.dtype)
        return in_shape(y_TO, *x.shape[:-1], frozen.out_features)

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, A, B, h_TR, columns, product_TO, mask = ctx.saved_tensors
        dropout: Dropout | None = ctx.counted if mask is None else MaskedDropout(mask, ctx.factor)
        g_TO, grad_columns = _rows(grads[0]), None
        if columns is not None:
            grad_columns = (g_TO.float() * (product_TO.float() - _bias(ctx.frozen))).sum(0)
            g_TO = (g_TO * columns).to(grads[0].dtype)
        gh_TR = (g_TO @ B.to(g_TO.dtype)) * ctx.scaling
        kernels, grad_A, grad_B = kernels_for(g_TO), None, torch.empty_like(B)
        if x is not None:
            grad_A, x_TI = torch.empty_like(A), _rows(x)
            kernels.narrow_product(gh_TR, x_TI if dropout is None else dropout.apply(x_TI), grad_A, 1.0)
        kernels.narrow_product(h_TR, g_TO, grad_B.T, 1.0)
        grad_x = None
        if ctx.needs_input_grad[0]:  # below the lowest adapter no gradient is needed
            grad_x = ctx.frozen.matmul_t(g_TO)
            if dropout is None:
                grad_x.addmm_(gh_TR, A.to(g_TO.dtype))
            else:
                dropout.add_(grad_x, gh_TR @ A.to(g_TO.dtype))
            grad_x = grad_x.view(*grads[0].shape[:-1], ctx.frozen.in_features)
        return grad_x, grad_A, grad_B, grad_columns, None, None, None


def _bias(frozen: FrozenLinear) -> torch.Tensor | float:
    bias = frozen.base.bias
    return 0.0 if bias is None else bias.float()


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Flattens (..., width) to (T, width)."""
    return x.reshape(-1, x.shape[-1])
