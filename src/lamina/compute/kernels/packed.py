"""Quantizes, dequantizes and multiplies weights in 4 or 8 bits, with the kernels of `packed.cpp`.

All results equal those of bitsandbytes bit for bit.
"""

from __future__ import annotations

from typing import Protocol

import torch

from lamina.compute.kernels import native
from lamina.compute.kernels.contract import SUFFIX, Argument
from lamina.compute.kernels.table import MOST_ROWS, WEIGHT_STEP
from lamina.errors import KernelError


class FourBits(Protocol):
    """A weight (out_features, in_features) in 4 bits: see `compute.weights.packed.FourBitLinear`."""

    out_features: int
    in_features: int
    blocksize: int
    packed: torch.Tensor
    code: torch.Tensor
    absmax: torch.Tensor
    nested_code: torch.Tensor | None
    nested_absmax: torch.Tensor | None
    nested_offset: torch.Tensor | None


class EightBits(Protocol):
    """A weight (out_features, in_features) in 8 bits: see `compute.weights.packed.EightBitLinear`."""

    out_features: int
    in_features: int
    packed: torch.Tensor
    scales: torch.Tensor


def can_read(weight: FourBits | EightBits, dtype: torch.dtype) -> bool:
    """Whether the kernels can dequantize this weight to this dtype: on the CPU, rows a multiple of WEIGHT_STEP."""
    return (
        weight.packed.is_cpu
        and dtype in SUFFIX
        and weight.in_features % WEIGHT_STEP == 0
        and native.unavailable() is None
    )


def can_multiply(x: torch.Tensor, weight: FourBits | EightBits) -> bool:
    """Whether the kernels multiply x (M, in_features) with a packed weight. With more rows, dequantizing is faster."""
    return 0 < len(x) <= MOST_ROWS and can_read(weight, x.dtype)


def can_pack(weight: torch.Tensor, blocksize: int) -> bool:
    """Whether `pack_4bit` supports this weight with this block size."""
    whole = weight.is_contiguous() and weight.numel() % blocksize == 0 and blocksize % WEIGHT_STEP == 0
    return whole and native.supports(weight) and native.unavailable() is None


def pack_4bit(
    weight: torch.Tensor, blocksize: int, bounds: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantizes a weight to 4 bits, two per byte, with a scale for each block.

    Args:
        weight: bfloat16 or float32, contiguous, on the CPU; a whole number of blocks.
        blocksize: Weights that share a scale.
        bounds: The bounds between the sixteen values, (15,), float32, ascending.
        order: The index into the table of each value, in ascending order of values, (16,), uint8.

    Returns:
        The packed weight, uint8 (elements / 2, 1), and the scales, float32 (blocks,): the largest magnitude of a block,
        which is not finite if one of its weights is not.
    """
    packed = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8)
    absmax = torch.empty(weight.numel() // blocksize, dtype=torch.float32)
    native.call("pack_4bit", weight.dtype, weight, blocksize, bounds, order, packed, absmax)
    return packed, absmax


def dequantize_4bit(weight: FourBits, out: torch.Tensor) -> None:
    """Dequantizes a weight into `out` (out_features, in_features), whose rows may be strided."""
    native.call("dequantize_4bit", out.dtype, *_four(weight), out)


def dequantize_8bit(weight: EightBits, step: float, out: torch.Tensor) -> None:
    """Dequantizes a weight in 8 bits, integers times row scale times `step`, into `out`."""
    native.call("dequantize_8bit", out.dtype, weight.packed, weight.scales, step, out)


def multiply_4bit(x: torch.Tensor, weight: FourBits) -> torch.Tensor:
    """Computes x W^T, summed in float32, for x (M, in_features) that `can_multiply` allows."""
    halves = x.float().reshape(len(x), -1, 2).transpose(1, 2).reshape(x.shape)
    y = x.new_empty(len(x), weight.out_features)
    native.call("multiply_4bit", x.dtype, *_four(weight), halves, y)
    return y


def multiply_8bit(x: torch.Tensor, weight: EightBits, step: float) -> torch.Tensor:
    """Computes x W^T for a weight in 8 bits, integers times row scale times `step`."""
    y = x.new_empty(len(x), weight.out_features)
    native.call("multiply_8bit", x.dtype, weight.packed, weight.scales, step, x.float().contiguous(), y)
    return y


def _four(weight: FourBits) -> tuple[Argument, ...]:
    tables = (weight.packed, weight.code, weight.blocksize)
    if weight.nested_absmax is None:
        return *tables, weight.absmax, None, None, None, 0.0
    if weight.nested_offset is None:
        raise KernelError("scales in 8 bits need nested_offset, the mean that was subtracted from them")
    return *tables, None, weight.absmax, weight.nested_code, weight.nested_absmax, float(weight.nested_offset)
