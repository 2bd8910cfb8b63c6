"""Which process computes which micro-batches of a step: a pure function, so that all of them agree without a word.

Micro-batches of like cost share a slot: with a sharded base, all processes walk through the slots in lockstep, and each
slot takes as long as its slowest micro-batch. The direction alternates, so that the processes' sums are alike as well.
"""

from __future__ import annotations

from collections.abc import Sequence


def cost(lengths: Sequence[int], width: int) -> float:
    """Estimates the work of a micro-batch, in units of the linear layers' work on one token.

    The linear layers of a decoder layer do about 24 width^2 operations for a token, attention about 4 width for each
    earlier token of its document, of which there are half its length on average.

    Args:
        lengths: Tokens in each of its documents.
        width: The model's hidden size.
    """
    return sum(lengths) + sum(length * length for length in lengths) / (12 * width)


def assign(costs: Sequence[float], size: int) -> list[list[int]]:
    """Distributes micro-batches over processes: every one is there once, and the largest share has the fewest possible.

    Args:
        costs: Of each micro-batch.
        size: Number of processes.

    Returns:
        The micro-batches of each process, by slot. The last slot may have none for some of them.

    >>> assign([5.0, 1.0, 4.0, 2.0, 3.0], 2)
    [[0, 3, 1], [2, 4]]
    """
    order = sorted(range(len(costs)), key=lambda place: -costs[place])
    shares: list[list[int]] = [[] for _ in range(size)]
    for slot, first in enumerate(range(0, len(order), size)):
        row = order[first : first + size]
        ranks = range(size) if slot % 2 == 0 or len(row) < size else reversed(range(size))
        for rank, place in zip(ranks, row, strict=False):
            shares[rank].append(place)
    return shares


def sharing(count: int, processes: int, who: str = "processes") -> str:
    """Says how many of a step's micro-batches each process computes.

    Args:
        count: Micro-batches of a step.
        processes: Number of processes.
        who: What they are called.

    >>> sharing(8, 1), sharing(8, 2), sharing(8, 3)
    ('whatever the number of processes', '4 for each of 2 processes', '2 or 3 for each of 3 processes')
    >>> sharing(2, 3)
    'so 1 of 3 processes have nothing to do'
    """
    if processes == 1:
        return f"whatever the number of {who}"
    if count < processes:
        return f"so {processes - count} of {processes} {who} have nothing to do"
    least, more = divmod(count, processes)
    return f"{f'{least} or {least + 1}' if more else least} for each of {processes} {who}"


def balance(costs: Sequence[float], size: int) -> float:
    """Returns how much longer a step takes than if its work could be divided at will; 1 is perfect.

    >>> balance([2.0, 2.0], 2), balance([2.0], 2), balance([3.0, 1.0], 2)
    (1.0, 2.0, 1.5)
    """
    total = sum(costs)
    slots = max(len(share) for share in assign(costs, size))
    slowest = sum(sorted(costs, reverse=True)[:: max(size, 1)][:slots])
    return slowest * size / total if total else 1.0
