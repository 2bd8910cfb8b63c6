"""Dropout on the input of a low-rank path, with a mask that the backward uses again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lamina.compute.kernels import kernels_for, native, plain

# An element is dropped or kept by sixteen random bits.
_STEPS = 2**16


@dataclass(frozen=True)
class CounterDropout:
    """A dropout whose mask is a function of a key: it is recomputed wherever it is used, and takes no memory.

    Attributes:
        key: Key of the counter-based generator, 64 bits.
        threshold: See `lamina.compute.kernels.plain.keep_mask`.
        factor: What the kept elements are multiplied by.
    """

    key: int
    threshold: int
    factor: float

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Applies the dropout: x (T, in) with dropped elements set to 0 and the others times the factor."""
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        kernels_for(x).dropped(x, self.key, self.threshold, self.factor, out)
        return out

    def add_(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """Adds `apply(x)` to total (T, in), in place."""
        kernels_for(x, total).add_dropped_(total, x, self.key, self.threshold, self.factor)


@dataclass(frozen=True)
class MaskedDropout:
    """A dropout that stores its mask.

    Attributes:
        mask: (T, in), bool: True for kept elements.
        factor: What the kept elements are multiplied by.
    """

    mask: torch.Tensor
    factor: float

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """See `CounterDropout.apply`."""
        return torch.where(self.mask, x * self.factor, 0.0)

    def add_(self, total: torch.Tensor, x: torch.Tensor) -> None:
        """See `CounterDropout.add_`."""
        total.add_(self.apply(x))


Dropout = CounterDropout | MaskedDropout


def draw_dropout(x: torch.Tensor, p: float) -> Dropout:
    """Draws a dropout for x from torch's generator for x's device.

    On the CPU the mask is a function of a 64-bit key, the same with compiled kernels and without.

    Args:
        x: (T, in), float16, bfloat16 or float32.
        p: Probability of dropping an element, at least 0 and below 1, rounded to a multiple of 2^-16.
    """
    steps = min(round(p * _STEPS), _STEPS - 1)
    threshold, factor = steps - _STEPS // 2, _STEPS / (_STEPS - steps)
    if x.device.type != "cpu":
        # One draw of 64 bits serves four elements.
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)
        return MaskedDropout(draws >= threshold, factor)
    key = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None))
    if kernels_for(x) is native:
        return CounterDropout(key, threshold, factor)
    return MaskedDropout(plain.keep_mask(x.shape, key, threshold, x.device), factor)
