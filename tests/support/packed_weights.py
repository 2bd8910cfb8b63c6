"""Weights packed in every way, and what bitsandbytes makes of them."""

from __future__ import annotations

from typing import Any

import torch

from lamina.compute.weights.packed import INT8_STEP, EightBitLinear, FourBitLinear
from lamina.config.quantization import QuantizationConfig
from lamina.quantization.pack import pack_weight

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"double_quant": False},
    "nf4 double": {},
    "fp4 double, blocks of 32": {"quant_type": "fp4", "blocksize": 32},
    "nf4 double, blocks of 128": {"blocksize": 128},
    "int8": {"bits": 8},
}


def weight(kind: str, size: tuple[int, int], dtype: torch.dtype) -> FourBitLinear | EightBitLinear:
    dense = torch.randn(size, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.01, 3.0, size[0])[:, None]
    linear = pack_weight(dense.to(dtype), QuantizationConfig.model_validate(KINDS[kind]))
    assert isinstance(linear, FourBitLinear | EightBitLinear)
    return linear


def by_bitsandbytes(linear: FourBitLinear | EightBitLinear, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(linear, FourBitLinear):
        return linear._dequantized_by_bitsandbytes(dtype)
    return (linear.packed * linear.scales[:, None] * INT8_STEP).to(dtype)
