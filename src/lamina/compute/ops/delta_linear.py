"""A frozen linear layer plus a weight update of few parameters, forward and backward in one autograd function.

    y = x W^T + b + x D^T

The update D (out, in) is built from a few small factors. Only x, once and in its own dtype, and the factors are saved
for the backward. Each kind of D applies it differently: `Hadamard` builds D in the forward and again in the backward,
where its gradient exists for one layer at a time; `Kronecker` never builds it.

Factors are float32 and are rounded to x's dtype before they are multiplied with x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from lamina.compute.ops.shapes import in_shape
from lamina.compute.weights.frozen import FrozenLinear


class Delta(ABC):
    """A kind of weight update D."""

    @staticmethod
    @abstractmethod
    def add(y_TO: torch.Tensor, x_TI: torch.Tensor, *factors: torch.Tensor) -> None:
        """Adds x D^T to y."""

    @staticmethod
    @abstractmethod
    def backward(
        g_TO: torch.Tensor, x_TI: torch.Tensor, grad_x_TI: torch.Tensor | None, *factors: torch.Tensor
    ) -> list[torch.Tensor]:
        """Adds g D to the input's gradient unless that is None, and returns the factors' gradients in their dtype."""


class Hadamard(Delta):
    """D = (A1 B1) * (A2 B2), elementwise (LoHa); factors A1 (out, r), B1 (r, in), A2 (out, r), B2 (r, in)."""

    @staticmethod
    def add(y_TO: torch.Tensor, x_TI: torch.Tensor, *factors: torch.Tensor) -> None:
        A1, B1, A2, B2 = factors
        y_TO.addmm_(x_TI, ((A1 @ B1) * (A2 @ B2)).to(x_TI.dtype).T)

    @staticmethod
    def backward(
        g_TO: torch.Tensor, x_TI: torch.Tensor, grad_x_TI: torch.Tensor | None, *factors: torch.Tensor
    ) -> list[torch.Tensor]:
        A1, B1, A2, B2 = factors
        first, second = A1 @ B1, A2 @ B2
        if grad_x_TI is not None:
            grad_x_TI.addmm_(g_TO, (first * second).to(g_TO.dtype))
        grad_D = (g_TO.T @ x_TI).to(A1.dtype)
        through_first, through_second = grad_D * second, grad_D * first
        return [through_first @ B1.T, A1.T @ through_first, through_second @ B2.T, A2.T @ through_second]


class Kronecker(Delta):
    """D = C (x) B, a Kronecker product (LoKr); factors C (l, m), B (k, n), for out = l k and in = m n.

    With x as (T, m, n) and y as (T, l, k), y[t] = C x[t] B^T, which is two small products instead of one with D.
    """

    @staticmethod
    def add(y_TO: torch.Tensor, x_TI: torch.Tensor, *factors: torch.Tensor) -> None:
        C, B = (factor.to(x_TI.dtype) for factor in factors)
        right_TKM = _right(x_TI, C, B)
        y_TO += (right_TKM @ C.T).transpose(1, 2).reshape(y_TO.shape)

    @staticmethod
    def backward(
        g_TO: torch.Tensor, x_TI: torch.Tensor, grad_x_TI: torch.Tensor | None, *factors: torch.Tensor
    ) -> list[torch.Tensor]:
        C, B = (factor.to(x_TI.dtype) for factor in factors)
        g_TKL = g_TO.reshape(-1, len(C), len(B)).transpose(1, 2).contiguous()
        grad_C = g_TKL.flatten(0, 1).T @ _right(x_TI, C, B).flatten(0, 1)
        back_TMK = (g_TKL @ C).transpose(1, 2).contiguous()
        grad_B = back_TMK.flatten(0, 1).T @ x_TI.reshape(-1, B.shape[1])
        if grad_x_TI is not None:
            grad_x_TI += (back_TMK @ B).view(grad_x_TI.shape)
        return [grad_C.to(factors[0].dtype), grad_B.to(factors[1].dtype)]


def _right(x_TI: torch.Tensor, C: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Computes (x[t] B^T)^T: (T, k, m)."""
    return (x_TI.reshape(-1, C.shape[1], B.shape[1]) @ B.T).transpose(1, 2).contiguous()


def delta_linear(
    x: torch.Tensor, frozen: FrozenLinear, delta: type[Delta], factors: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """Computes the layer.

    Args:
        x: (..., in), in the compute dtype.
        frozen: W and b.
        delta: The kind of D.
        factors: The factors of D, float32; one of them includes the scaling.

    Returns:
        (..., out), in x's dtype.
    """
    return _DeltaLinear.apply(x, frozen, delta, *factors)  # pyright: ignore[reportReturnType]


class _DeltaLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, frozen: FrozenLinear, delta: type[Delta], *factors: torch.Tensor
    ) -> torch.Tensor:
        x_TI = x.reshape(-1, x.shape[-1])
        y_TO = frozen.matmul(x_TI)
        delta.add(y_TO, x_TI, *factors)
        ctx.save_for_backward(x, *factors)
        ctx.frozen, ctx.delta = frozen, delta
        return in_shape(y_TO, *x.shape[:-1], frozen.out_features)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, *factors = ctx.saved_tensors
        x_TI = x.reshape(-1, x.shape[-1])
        g_TO = grads[0].reshape(-1, grads[0].shape[-1])
        # Below the lowest adapter no gradient is needed.
        grad_x = ctx.frozen.matmul_t(g_TO) if ctx.needs_input_grad[0] else None
        factor_grads = ctx.delta.backward(g_TO, x_TI, grad_x, *factors)
        return None if grad_x is None else grad_x.view(x.shape), None, None, *factor_grads
