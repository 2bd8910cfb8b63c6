"""Reshaping results, and rounding sizes up to a few that repeat.

On the CPU oneDNN generates and caches code for each new shape of a matrix product: several milliseconds and hundreds of
kilobytes per shape. If every step had another number of tokens, memory would grow with every step
(docs/decisions/0022-shapes-that-repeat.md). So sizes are rounded up to a few that repeat.
"""

from __future__ import annotations

import torch


def in_shape(fresh: torch.Tensor, *shape: int) -> torch.Tensor:
    """Reshapes a new tensor without making it a view for autograd.

    Autograd forbids writing into a view that an autograd function returned, and model code adds to results in place.
    The caller must not use `fresh` afterwards.
    """
    return torch.ops.aten._unsafe_view(fresh, shape)


def repeating_size(size: int) -> int:
    """Rounds up to the next size that repeats: sixteen between a power of two and the next, so at most 6% larger.

    >>> [repeating_size(size) for size in (5, 33, 1000, 1024, 1025)]
    [5, 34, 1024, 1024, 1088]
    """
    step = max(1, 1 << (size.bit_length() - 5)) if size >= 32 else 1
    return -(-size // step) * step
