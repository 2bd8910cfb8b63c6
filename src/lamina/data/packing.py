"""Which examples go together in a micro-batch, in which order: decided by seed and epoch alone, so resume is exact."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def plan_epoch(
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    max_length: int,
    packing: bool,
    seed: int,
    epoch: int,
    group_by_length: bool = False,
    blocks: np.ndarray | None = None,
) -> list[list[int]]:
    """The micro-batches of one epoch, as lists of example indices.

    With packing, a micro-batch is filled up to `batch_size * max_length` tokens (best fit, longest first); without,
    it is `batch_size` examples. Either way the documents are later laid end to end, with no padding.

    Args:
        lengths: Tokens of each example.
        batch_size: `per_device_train_batch_size`.
        max_length: Longest sequence in tokens.
        packing: Whether to count tokens rather than examples.
        seed: Decides the order.
        epoch: From 0; every epoch has an order of its own and the same number of micro-batches.
        group_by_length: Without packing, put examples of like length together.
        blocks: int64, shape (examples,), not falling: the micro-batch that each example belongs to, where that is
            settled for all epochs (see `wrap`); only their order is drawn then.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if blocks is not None:
        batches = [part.tolist() for part in np.split(np.arange(len(blocks)), 1 + np.flatnonzero(np.diff(blocks)))]
    elif packing:
        # An example of several sequences may be longer than `max_length`, and has a micro-batch all the same.
        batches = _best_fit(order, lengths, max(batch_size * max_length, int(lengths.max(initial=1))))
    else:
        if group_by_length:
            order = order[np.argsort(lengths[order], kind="stable")]
        batches = [order[first : first + batch_size].tolist() for first in range(0, len(order), batch_size)]
        if not group_by_length:
            return batches
    return [batches[place] for place in generator.permutation(len(batches))]


@dataclass(frozen=True)
class Parts:
    """Parts of examples, one entry each.

    Attributes:
        example: int64: which example.
        begin: int64: first token, counted from the example's first one.
        length: int64: number of tokens.
        block: int64: the micro-batch that it belongs to.
    """

    example: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    block: np.ndarray


def wrap(lengths: np.ndarray, budget: int, seed: int) -> Parts:
    """Lays examples end to end, in an order drawn by `seed`, and cuts them wherever `budget` tokens are full."""
    order = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths))
    ends = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(starts, np.arange(0, total, budget))
    place = np.searchsorted(starts, cuts, side="right") - 1
    return Parts(order[place], cuts - starts[place], np.diff(np.append(cuts, total)), cuts // budget)


def _best_fit(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Best fit decreasing: each example goes into the fullest bin that still holds it. Ties follow `order`.

    Examples of one length are placed together, and so are bins with as much space left, so that the work grows with
    the number of distinct lengths and not of examples.
    """
    examples = order[np.argsort(-lengths[order], kind="stable")].tolist()
    values, counts = np.unique(lengths, return_counts=True)
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # space left -> the bins that have it
    spaces: list[int] = []  # its keys, sorted
    at = 0

    def add(space: int, chosen: list[int]) -> None:
        if space not in by_space:
            by_space[space] = []
            insort(spaces, space)
        by_space[space] += chosen

    for length, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        left = count
        while left:
            place = bisect_left(spaces, length)
            if place < len(spaces):
                space = spaces[place]
                group = by_space[space]
            else:
                space = budget
                group = list(range(len(bins), len(bins) + -(-left // (budget // length))))
                bins += [[] for _ in group]
                add(space, group)
                group = by_space[space]
            # A bin that took one is the fullest that takes the next, for as long as there is room in it.
            each = space // length
            used = min(len(group), -(-left // each))
            taken, by_space[space] = group[:used], group[used:]
            number = each
            if not by_space[space]:
                del by_space[space]
                spaces.pop(bisect_left(spaces, space))
            for chosen in taken:
                number = min(each, left)
                bins[chosen] += examples[at : at + number]
                at, left = at + number, left - number
            if number < each:
                add(space - number * length, [taken.pop()])
            if taken:
                add(space - each * length, taken)
    return bins
