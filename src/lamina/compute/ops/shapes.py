"""Shapes of results, and sizes that come again.

On the CPU oneDNN generates code for each new shape of a matrix product and keeps it: several milliseconds and hundreds
of kilobytes a shape. Were every step to have its own number of tokens, memory would grow with every step
(docs/decisions/0022-shapes-that-repeat.md). So sizes are rounded up to a few that repeat.
"""

from __future__ import annotations

import torch


def in_shape(fresh: torch.Tensor, *shape: int) -> torch.Tensor:
    """A fresh tensor in another shape, which autograd takes for a fresh one too.

    What an autograd function returns as a view must not be written into, and model code adds to results in place. The
    tensor given is not to be used any more.
    """
    return torch.ops.aten._unsafe_view(fresh, shape)


def repeating_size(size: int) -> int:
    """The next of the sizes that repeat: sixteen between a power of two and the next, so at most 6% larger.

    >>> [repeating_size(size) for size in (5, 33, 1000, 1024, 1025)]
    [5, 34, 1024, 1024, 1088]
    """
    step = max(1, 1 << (size.bit_length() - 5)) if size >= 32 else 1
    return -(-size // step) * step
