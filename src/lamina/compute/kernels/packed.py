"""Weights in 4 or 8 bits, by the kernels of `packed.cpp`: packed, laid out dense, or multiplied as they are.

All numbers are those of bitsandbytes, bit for bit.
"""

from __future__ import annotations

from typing import Protocol

import torch

from lamina.compute.kernels import native
from lamina.compute.kernels.contract import SUFFIX, Argument
from lamina.compute.kernels.table import MOST_ROWS, WEIGHT_STEP
from lamina.errors import KernelError


class FourBits(Protocol):
    """A weight (out_features, in_features) in 4 bits: see `quantization.packed.FourBitLinear`."""

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
    """A weight (out_features, in_features) in 8 bits: see `quantization.packed.EightBitLinear`."""

    out_features: int
    in_features: int
    packed: torch.Tensor
    scales: torch.Tensor


def takes(weight: FourBits | EightBits, dtype: torch.dtype) -> bool:
    """Whether the kernels can read this weight, in this dtype: on the CPU, in rows of whole vectors."""
    return (
        weight.packed.is_cpu
        and dtype in SUFFIX
        and weight.in_features % WEIGHT_STEP == 0
        and native.unavailable() is None
    )


def multiplies(x: torch.Tensor, weight: FourBits | EightBits) -> bool:
    """Whether they multiply x (M, in_features) with it as it is. Laying it out first is faster for more rows."""
    return 0 < len(x) <= MOST_ROWS and takes(weight, x.dtype)


def packs(weight: torch.Tensor, blocksize: int) -> bool:
    """Whether `pack_4bit` can take this weight, in these blocks."""
    whole = weight.is_contiguous() and weight.numel() % blocksize == 0 and blocksize % WEIGHT_STEP == 0
    return whole and native.supports(weight) and native.unavailable() is None


def pack_4bit(
    weight: torch.Tensor, blocksize: int, bounds: torch.Tensor, order: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nibbles, two a byte, and a scale for each block of a weight.

    Args:
        weight: On the CPU, bfloat16 or float32, contiguous; a whole number of blocks.
        blocksize: Weights that share a scale.
        bounds: (15,), float32, rising: what lies between the sixteen numbers.
        order: (16,), uint8: the place in the table of each number, from the lowest.

    Returns:
        uint8 (elements / 2, 1), and float32 (blocks,): the largest magnitude, not finite where a weight is not.
    """
    packed = torch.empty(weight.numel() // 2, 1, dtype=torch.uint8)
    absmax = torch.empty(weight.numel() // blocksize, dtype=torch.float32)
    native.call("pack_4bit", weight.dtype, weight, blocksize, bounds, order, packed, absmax)
    return packed, absmax


def lay_4bit(weight: FourBits, out: torch.Tensor) -> None:
    """Writes the dense weight into `out` (out_features, in_features), whose rows may lie apart."""
    native.call("lay_4bit", out.dtype, *_four(weight), out)


def lay_8bit(weight: EightBits, step: float, out: torch.Tensor) -> None:
    """The same for whole numbers times row scale times `step`."""
    native.call("lay_8bit", out.dtype, weight.packed, weight.scales, step, out)


def multiply_4bit(x: torch.Tensor, weight: FourBits) -> torch.Tensor:
    """x W^T for x (M, in_features) that `multiplies` says yes to, summed in float32."""
    halves = x.float().reshape(len(x), -1, 2).transpose(1, 2).reshape(x.shape)
    y = x.new_empty(len(x), weight.out_features)
    native.call("multiply_4bit", x.dtype, *_four(weight), halves, y)
    return y


def multiply_8bit(x: torch.Tensor, weight: EightBits, step: float) -> torch.Tensor:
    """The same for whole numbers times row scale times `step`."""
    y = x.new_empty(len(x), weight.out_features)
    native.call("multiply_8bit", x.dtype, weight.packed, weight.scales, step, x.float().contiguous(), y)
    return y


def _four(weight: FourBits) -> tuple[Argument, ...]:
    tables = (weight.packed, weight.code, weight.blocksize)
    if weight.nested_absmax is None:
        return *tables, weight.absmax, None, None, None, 0.0
    if weight.nested_offset is None:
        raise KernelError("scales in 8 bits need what was taken off them")
    return *tables, None, weight.absmax, weight.nested_code, weight.nested_absmax, float(weight.nested_offset)
