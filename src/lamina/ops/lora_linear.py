"""A frozen linear layer with a low-rank detour, forward and backward in one autograd function.

    y = x W^T + b + s (drop(x) A^T) B^T

or, where columns are scaled by factors c (DoRA), y = c (x W^T + s (drop(x) A^T) B^T) + b.

Saved for the backward are x, once and in its own dtype, and the rank-sized h = s drop(x) A^T; with c, the product too.
The gradient of W is never formed, and every other intermediate of the detour is rank-sized:

    gh = s (g B)          dB = g^T h          dA = gh^T drop(x)          dx = g W + drop'(gh A)

A and B are float32 masters; they are rounded to x's dtype for the products, as autocast would do.
"""

from __future__ import annotations

from typing import Any

import torch

from lamina.quantization.frozen import FrozenLinear


def lora_linear(
    x: torch.Tensor,
    frozen: FrozenLinear,
    A: torch.Tensor,
    B: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    columns: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes the layer.

    Args:
        x: (..., in), in the compute dtype.
        frozen: W and b.
        A: (r, in), float32.
        B: (out, r), float32.
        scaling: s.
        dropout: Probability of dropping an element of the detour's input (torch's generator draws); 0 at evaluation.
        columns: c, (out,), float32, or None for 1.

    Returns:
        (..., out), in x's dtype.
    """
    keep = None
    if dropout > 0.0:
        keep = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1.0 - dropout)
    return _LoraLinear.apply(x, A, B, columns, frozen, scaling, keep, dropout)


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
        keep: torch.Tensor | None,
        dropout: float,
    ) -> torch.Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        y_TO = frozen.matmul(x_TI, with_bias=columns is None)
        h_TR = _dropped(x_TI, keep, dropout) @ A.to(x.dtype).T
        h_TR = h_TR * scaling
        y_TO.addmm_(h_TR, B.to(x.dtype).T)
        ctx.save_for_backward(x, A, B, h_TR, keep, columns, None if columns is None else y_TO)
        ctx.frozen, ctx.scaling, ctx.dropout = frozen, scaling, dropout
        if columns is not None:
            y_TO = (y_TO * columns).to(x.dtype)
            if frozen.base.bias is not None:
                y_TO += frozen.base.bias
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, A, B, h_TR, keep, columns, product_TO = ctx.saved_tensors
        x_TI = x.reshape(-1, x.shape[-1])
        g_TO = grads[0].reshape(-1, grads[0].shape[-1])
        grad_columns = None
        if columns is not None:
            grad_columns = (g_TO.float() * product_TO.float()).sum(0)
            g_TO = (g_TO * columns).to(x.dtype)
        gh_TR = (g_TO @ B.to(x.dtype)) * ctx.scaling
        grad_A = (gh_TR.T @ _dropped(x_TI, keep, ctx.dropout)).to(A.dtype)
        grad_B = (g_TO.T @ h_TR).to(B.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:  # nothing flows below the lowest adapter
            grad_x = ctx.frozen.matmul_t(g_TO)
            if keep is None:
                grad_x.addmm_(gh_TR, A.to(x.dtype))
            else:
                grad_x += _dropped(gh_TR @ A.to(x.dtype), keep, ctx.dropout)
            grad_x = grad_x.view(x.shape)
        return grad_x, grad_A, grad_B, grad_columns, None, None, None, None


def _dropped(x_TI: torch.Tensor, keep: torch.Tensor | None, dropout: float) -> torch.Tensor:
    if keep is None:
        return x_TI
    return x_TI * keep.reshape(x_TI.shape) * (1.0 / (1.0 - dropout))
