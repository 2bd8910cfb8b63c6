"""What rounding alone can do to a model: linear layers' results moved at random by as much as rounding may move them.

Two right ways of computing the same thing differ by rounding, and how far that carries depends on the model, the data
and the dtype. So it is measured on the model itself, rather than assumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.weights import freeze_linear

# Largest relative error of one rounding to float32.
_FLOAT32 = torch.finfo(torch.float32).eps / 2


@contextlib.contextmanager
def with_rounding_moved(model: nn.Module, seed: int, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Inside the block, linear layers give results as another, equally right order of computing might give them.

    Args:
        model: Any.
        seed: Of the errors.
        dtype: What results are rounded to; by default their own. A coarser one moves them as if they had it.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    handles = []
    for module in model.modules():
        frozen = module.frozen if isinstance(module, AdapterLinear) else freeze_linear(module)
        if frozen is not None:
            row_norm = float(frozen.weight(torch.float32).norm()) / frozen.out_features**0.5
            handles.append(module.register_forward_hook(_mover(row_norm, generator, dtype)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _mover(row_norm: float, generator: torch.Generator, dtype: torch.dtype | None) -> Callable[..., torch.Tensor]:
    def move(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return _Moved.apply(output, inputs[0].detach(), row_norm, generator, dtype or output.dtype)  # pyright: ignore[reportReturnType]

    return move


class _Moved(torch.autograd.Function):
    """Moves a linear layer's result, and later its gradient, by a random rounding error.

    Two errors: the result is rounded to its dtype (half a spacing of its size), and the sum of products is rounded in
    float32 all along (some 2^-24 of ||x|| ||w||, which matters where large products cancel).
    """

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, row_norm: float, generator: torch.Generator, dtype: torch.dtype
    ) -> torch.Tensor:
        ctx.generator, ctx.dtype = generator, dtype
        return _moved(y, _FLOAT32 * row_norm * x.float().norm(dim=-1, keepdim=True), generator, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grads
        sums = _FLOAT32 * grad.shape[-1] ** 0.5 * grad.float().abs()
        return _moved(grad, sums, ctx.generator, ctx.dtype), None, None, None, None


def _moved(y: torch.Tensor, sums: torch.Tensor, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    rounding = torch.finfo(dtype).eps / 2
    drawn = torch.empty(y.shape, device=y.device).uniform_(-1.0, 1.0, generator=generator)
    exact = y.float()
    return (exact + drawn * (rounding * exact.abs() + sums)).to(y.dtype)
