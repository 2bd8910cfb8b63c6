"""Quantizes a weight according to a configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lamina.compute.weights.packed import EightBitLinear, FourBitLinear, PackedLinear
from lamina.config.quantization import QuantizationConfig


def pack_weight(weight: torch.Tensor, config: QuantizationConfig) -> PackedLinear:
    """Quantizes a weight (out_features, in_features) as `config` says, into a layer without a bias."""
    linear: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if config.bits == 8:
        return EightBitLinear.pack(linear)
    return FourBitLinear.pack(linear, config.quant_type, config.double_quant, config.blocksize)
