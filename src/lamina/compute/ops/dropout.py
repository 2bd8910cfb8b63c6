"""Dropout of a path's input, with a mask that the backward uses again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lamina.compute.kernels import kernels_for, native, plain

# Sixteen random bits decide about an element.
_STEPS = 2**16


@dataclass(frozen=True)
class CountedDropout:
    """A dropout whose mask is a function of a key: it is drawn anew wherever it is used, and takes no memory.

    Attributes:
        key: 64 bits.
        threshold: As in `lamina.compute.kernels.plain.stays`.
        factor: Of what stays.
    """

    key: int
    threshold: int
    factor: float

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """x (T, in) with what is dropped as 0 and the rest times the factor."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        kernels_for(x).dropped(x, self.key, self.threshold, self.factor, out)
        return out

    def add_(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """total (T, in) += `of(x)`."""
        kernels_for(x, total).add_dropped_(total, x, self.key, self.threshold, self.factor)


@dataclass(frozen=True)
class MaskedDropout:
    """A dropout that keeps its mask.

    Attributes:
        mask: (T, in), bool: what stays.
        factor: Of what stays.
    """

    mask: torch.Tensor
    factor: float

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """As `CountedDropout.of`."""
        return torch.where(self.mask, x * self.factor, 0.0)

    def add_(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """As `CountedDropout.add_`."""
        total.add_(self.of(x))


Dropout = CountedDropout | MaskedDropout


def draw_dropout(x: torch.Tensor, p: float) -> Dropout:
    """A dropout for x, drawn by torch's generator of x's device.

    On the CPU a mask is a function of a 64-bit key, the same with compiled kernels and without.

    Args:
        x: (T, in), float16, bfloat16 or float32.
        p: Probability of dropping an element, at least 0 and below 1, rounded to a multiple of 2^-16.
    """
    steps = min(round(p * _STEPS), _STEPS - 1)
    threshold, factor = steps - _STEPS // 2, _STEPS / (_STEPS - steps)
    if x.device.type != "cpu":
        # Four elements share a draw of 64 bits.
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)
        return MaskedDropout(draws >= threshold, factor)
    key = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    if kernels_for(x) is native:
        return CountedDropout(key, threshold, factor)
    return MaskedDropout(plain.stays(x.shape, key, threshold, x.device), factor)
