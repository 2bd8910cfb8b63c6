"""Assigns examples to micro-batches, in an order that only depends on seed and epoch, so that resume is exact."""

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
    """Returns the micro-batches of one epoch, as lists of example indices.

    With packing, a micro-batch is filled up to `batch_size * max_length` tokens (best fit, longest first); without, it
    has `batch_size` examples. Either way, the documents are later concatenated without padding.

    Args:
        lengths: Tokens in each example.
        batch_size: `per_device_train_batch_size`.
        max_length: Maximum length of a sequence in tokens.
        packing: Whether to count tokens instead of examples.
        seed: Seed of the order.
        epoch: Epoch, from 0. Every epoch has its own order and the same number of micro-batches.
        group_by_length: Without packing, whether to group examples of similar length.
        blocks: int64, shape (examples,), non-decreasing: the micro-batch of each example, if it is the same in every
            epoch (see `wrap`); only the order of the micro-batches is then random.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    if blocks is not None:
        batches = [part.tolist() for part in np.split(np.arange(len(blocks)), 1 + np.flatnonzero(np.diff(blocks)))]
    elif packing:
        # An example with several sequences may be longer than `max_length`, and still gets a micro-batch.
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
    """Parts of examples, one entry per part.

    Attributes:
        example: int64: index of the example.
        begin: int64: first token, as an offset within the example.
        length: int64: number of tokens.
        block: int64: its micro-batch.
    """

    example: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    block: np.ndarray


def wrap(lengths: np.ndarray, budget: int, seed: int) -> Parts:
    """Concatenates examples in an order drawn by `seed`, and cuts them after every `budget` tokens."""
    order = np.random.default_rng([seed, len(lengths)]).permutation(len(lengths))
    ends = np.cumsum(lengths[order])
    starts = ends - lengths[order]
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.union1d(starts, np.arange(0, total, budget))
    place = np.searchsorted(starts, cuts, side="right") - 1
    return Parts(order[place], cuts - starts[place], np.diff(np.append(cuts, total)), cuts // budget)


def _best_fit(order: np.ndarray, lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Best fit decreasing: puts each example into the fullest bin that has room for it. Ties follow `order`.

    Examples of the same length are placed together, as are bins with the same free space, so that the work grows with
    the number of distinct lengths, not of examples.
    """
    examples = order[np.argsort(-lengths[order], kind="stable")].tolist()
    values, counts = np.unique(lengths, return_counts=True)
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # free space -> the bins that have it
    spaces: list[int] = []  # the keys, sorted
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
            # A bin that received one example is the fullest for the next one, as long as it has room.
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
