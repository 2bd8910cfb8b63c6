"""Which examples go together in a micro-batch, in which order: decided by seed and epoch alone, so resume is exact."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence


def plan_epoch(
    lengths: Sequence[int], batch_size: int, max_length: int, packing: bool, seed: int, epoch: int
) -> list[list[int]]:
    """The micro-batches of one epoch, as lists of example indices.

    With packing, a micro-batch is filled up to `batch_size * max_length` tokens (best fit, longest first); without,
    it is `batch_size` examples. Either way the documents are later laid end to end, with no padding.

    Args:
        lengths: Tokens of each example.
        batch_size: `per_device_train_batch_size`.
        max_length: Longest example in tokens.
        packing: Whether to count tokens rather than examples.
        seed: Decides the order.
        epoch: From 0; every epoch has an order of its own and the same number of micro-batches.
    """
    rng = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    if not packing:
        return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    bins = _best_fit(order, lengths, batch_size * max_length)
    rng.shuffle(bins)
    return bins


def _best_fit(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Best fit decreasing: each example goes into the fullest bin that still holds it. Ties follow `order`."""
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in sorted(order, key=lambda index: -lengths[index]):
        place = bisect.bisect_left(free, (lengths[index], -1))
        if place < len(free):
            left, chosen = free.pop(place)
        else:
            left, chosen = budget, len(bins)
            bins.append([])
        bins[chosen].append(index)
        bisect.insort(free, (left - lengths[index], chosen))
    return bins
