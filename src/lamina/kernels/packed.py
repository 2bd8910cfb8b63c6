"""Weights in 4 or 8 bits, by the kernels of `packed.cpp`: packed, laid out dense, or multiplied as they are.

All numbers are those of bitsandbytes, bit for bit.
"""

from __future__ import annotations

from typing import Protocol

import torch

from lamina.kernels import native

# Rows that the kernel multiplies at most. With more, laying the weights out and multiplying them dense is faster.
MOST_ROWS = 8


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
        weight.packed.device.type == "cpu"
        and dtype in (torch.bfloat16, torch.float32)
        and weight.in_features % 32 == 0
        and native.unavailable() is None
    )


def packs(weight: torch.Tensor) -> bool:
    """Whether `pack_4bit` can take this weight."""
    return weight.device.type == "cpu" and native.supports(weight) and native.unavailable() is None


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
    tables = (native.pointer(bounds), native.pointer(order))
    results = (native.pointer(packed), native.pointer(absmax))
    native.call("pack_4bit", weight.dtype, native.pointer(weight), len(absmax), blocksize, *tables, *results)
    return packed, absmax


def lay_4bit(weight: FourBits, out: torch.Tensor) -> None:
    """Writes the dense weight into `out` (out_features, in_features), whose rows may lie apart."""
    native.call("lay_4bit", out.dtype, *_four(weight), *native.rows(out), *out.shape)


def lay_8bit(weight: EightBits, step: float, out: torch.Tensor) -> None:
    """The same for whole numbers times row scale times `step`."""
    native.call("lay_8bit", out.dtype, *_eight(weight, step), *native.rows(out), *out.shape)


def multiply_4bit(x: torch.Tensor, weight: FourBits) -> torch.Tensor:
    """x W^T for x (M, in_features) of `MOST_ROWS` or fewer, summed in float32."""
    halves = x.float().view(len(x), -1, 2).transpose(1, 2).contiguous()
    return _multiply("multiply_4bit", x, halves.view(x.shape), _four(weight), weight.out_features)


def multiply_8bit(x: torch.Tensor, weight: EightBits, step: float) -> torch.Tensor:
    """The same for whole numbers times row scale times `step`."""
    return _multiply("multiply_8bit", x, x.float().contiguous(), _eight(weight, step), weight.out_features)


def _multiply(
    name: str, x: torch.Tensor, floats: torch.Tensor, weight: tuple[object, ...], outputs: int
) -> torch.Tensor:
    y = x.new_empty(len(x), outputs)
    native.call(name, x.dtype, *weight, native.pointer(floats), len(x), *native.rows(y), outputs, x.shape[1])
    return y


def _four(weight: FourBits) -> tuple[object, ...]:
    tables = (native.pointer(weight.packed), native.pointer(weight.code), weight.blocksize)
    if weight.nested_absmax is None:
        return *tables, native.pointer(weight.absmax), None, None, None, native.real(0.0)
    assert weight.nested_code is not None and weight.nested_offset is not None
    nested = (weight.absmax, weight.nested_code, weight.nested_absmax)
    return *tables, None, *map(native.pointer, nested), native.real(float(weight.nested_offset))


def _eight(weight: EightBits, step: float) -> tuple[object, ...]:
    return native.pointer(weight.packed), native.pointer(weight.scales), native.real(step)
