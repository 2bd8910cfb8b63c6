"""The gate of an MLP whose gate and up projections are one product: act(gate) up, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lamina.compute.kernels import GELU_TANH, SILU, as_in_forward, chosen_backend, kernels_for


def read_activation(function: Any) -> int | None:
    """Finds which of the kernels' activations a function is; None if it is another one."""
    x = torch.linspace(-6.0, 6.0, 101)
    y = function(x)
    candidates = {SILU: nn.functional.silu(x), GELU_TANH: nn.functional.gelu(x, approximate="tanh")}
    return next((name for name, ours in candidates.items() if torch.allclose(y, ours, atol=1e-5)), None)


def gated_halves(gate_up: torch.Tensor, activation: int) -> torch.Tensor:
    """Computes act(gate) up, (T, I), for gate and up in the halves of `gate_up` (T, 2 I)."""
    return _GatedHalves.apply(gate_up, activation)  # pyright: ignore[reportReturnType]


class _GatedHalves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, activation: int) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        out = torch.empty_like(gate, memory_format=torch.contiguous_format)
        kernels_for(gate, up).gated(gate, up, activation, out)
        ctx.save_for_backward(gate_up)
        ctx.activation, ctx.backend = activation, chosen_backend()
        return out

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Cloned, because the kernel overwrites its inputs with gradients, and autograd owns these tensors.
        both, product = ctx.saved_tensors[0].clone(), grads[0].clone(memory_format=torch.contiguous_format)
        gate, up = both.chunk(2, dim=-1)
        kernels_for(gate, up, product).gated_backward_(gate, up, ctx.activation, product)
        return both, None
