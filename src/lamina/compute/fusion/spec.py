"""`LayerSpec`: the weights and settings of a decoder layer, from which `layer.py` computes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.ops.linear_group import LinearGroup
from lamina.compute.ops.row_forms import LowRank


@dataclass(frozen=True)
class Norm:
    """An RMS norm: x / rms(x) (offset + weight)."""

    weight: torch.Tensor
    eps: float
    offset: float


@dataclass(frozen=True)
class Linears:
    """Linear modules with the same input, with or without an adapter, and the group that computes them."""

    modules: list[nn.Module]
    group: LinearGroup

    def paths(self) -> list[LowRank | None]:
        """Their paths as they are now; None where there is none or it is switched off."""
        return [module.low_rank_path() if isinstance(module, AdapterLinear) else None for module in self.modules]


@dataclass(frozen=True)
class LayerSpec:
    """The weights and settings of a decoder layer.

    Attributes:
        input_norm: The norm before attention.
        attention_norm: The norm after attention, before the residual is added (Gemma), or None.
        mlp_norm: The norm before the gated MLP.
        output_norm: The norm after the gated MLP (Gemma), or None.
        head_norms: The norms of each query head and each key head (Qwen 3, Gemma 3), or None.
        qkv, o, gate_up, down: The linear layers.
        heads: Number of query heads.
        key_heads: Number of key and value heads.
        head_size: Width of a head.
        scale, window, softcap: See `AttentionSettings`.
        activation: `kernels.SILU` or `kernels.GELU_TANH`.
    """

    input_norm: Norm
    attention_norm: Norm | None
    mlp_norm: Norm
    output_norm: Norm | None
    head_norms: tuple[Norm, Norm] | None
    qkv: Linears
    o: Linears
    gate_up: Linears
    down: Linears
    heads: int
    key_heads: int
    head_size: int
    scale: float
    window: int | None
    softcap: float | None
    activation: int

    def all_linears(self) -> tuple[Linears, ...]:
        """Lists the linear layers in the order in which their gradients are returned."""
        return (self.qkv, self.o, self.gate_up, self.down)
