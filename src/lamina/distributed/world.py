"""`World`: the one object that knows how many processes train together, and which of them this is.

What belongs to a run asks it: a step which of its micro-batches are this process's and for the sum of all gradients,
an evaluation which batches, the event log and the checkpoints whether to write, a stop request whether somebody has
one. Which micro-batches make a step, and what its sums are divided by, never depends on it.

`ALONE` is the world of a single process, where all of that is trivial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


class World:
    """One process by itself; the base of worlds with more.

    Attributes:
        rank: Which process this is, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, to disk and to people."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of work that is known to all: every `size`-th item, from its own rank on.

        Over all processes, every item is there once, whatever their number; a process may have none.
        """
        return [items[place] for place in range(self.rank, len(items), self.size)]

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, which is the same to the bit in each of them."""

    def total(self, number: float) -> float:
        """The sum of a number over all processes."""
        return number

    def union(self, names: Iterable[str]) -> list[str]:
        """The names that any process has, in order: what all of them then ask for the sums of."""
        return sorted(set(names))

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return flag

    def once(self, work: Callable[[], T]) -> T:
        """Lets the first process do something that all have to wait for, such as writing a checkpoint.

        Returns:
            What the work gave, in every process.

        Raises:
            Exception: Whatever the work raised, in every process.
        """
        return work()

    def same_everywhere(self, what: str, digest: str) -> None:
        """Compares a digest over all processes.

        Raises:
            RunError: One has another; `what` says of what.
        """


ALONE = World()
"""The world of a single process."""
