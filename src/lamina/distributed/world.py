"""`World`: the one object that knows how many processes train together, and which of them this is.

What belongs to a run asks it: a step which of its micro-batches are this process's and for the sum of all gradients,
an evaluation which batches, the event log and the checkpoints whether to write, a stop request whether somebody has
one. Which micro-batches make a step, and what its sums are divided by, never depends on it.

`ALONE` is the world of a single process, where all of that is trivial; `group.py` has the one with several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from lamina.distributed.assign import assign
from lamina.errors import RunError

T = TypeVar("T")


class World:
    """One process by itself; the base of worlds with more.

    Attributes:
        rank: Which process this is, from 0.
        size: How many there are.
        local_size: How many of them share this machine.
        communication_seconds: Time spent in communication so far, with waiting for others.
        timeout: Seconds that a process may be late before the others give up.
        lockstep: Whether every process must run the model as often as the others, because they share its weights.
        team_size: Number of processes that work on the same micro-batch, each on a part of its documents.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    communication_seconds: float = 0.0
    timeout: float = 1800.0
    lockstep: bool = False
    team_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, to disk and to people."""
        return self.rank == 0

    def mine(self, costs: Sequence[float]) -> list[int]:
        """Returns this process's part of work that is known to all, by its place; a process may have none.

        Args:
            costs: Of each piece of work.
        """
        return assign(costs, self.size // self.team_size)[self.rank // self.team_size]

    @property
    def part(self) -> int:
        """Which part of its team's documents is this process's."""
        return self.rank % self.team_size

    def exchanging(self, what: str) -> AbstractContextManager[object]:
        """Names an exchange between the processes that the block makes, for the errors of `gather`."""
        return nullcontext()

    def exchange(self, tensor: torch.Tensor) -> torch.Tensor:
        """Exchanges the entries of a tensor (team size, ...) with the other processes of the team: an all-to-all."""
        return tensor

    def walk(self, costs: Sequence[float]) -> Iterator[tuple[int, bool]]:
        """Yields this process's part of work on the model, one place after the other.

        Args:
            costs: Of each piece of work.

        Yields:
            The place, and whether its result counts. In lockstep, a process that has no more work does the cheapest
            piece again, and discards the result.
        """
        mine = self.mine(costs)
        for place in mine:
            yield place, True
        slots = math.ceil(len(costs) / (self.size // self.team_size))
        for _ in range(slots - len(mine) if self.lockstep else 0):
            yield min(range(len(costs)), key=costs.__getitem__), False

    def gather(self, value: T, what: str) -> list[T]:
        """Returns every process's value, by rank.

        Args:
            value: Small, and can be pickled.
            what: What all processes have reached, for the error that says who has not.
        """
        return [value]

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replaces a tensor by its sum over all processes, which is the same to the bit in each of them."""

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces tensors by those of the first process."""

    def collect(self, parts: Mapping[int, T], what: str) -> list[T]:
        """Returns what all processes made of their parts of the work, in the order of the work.

        Args:
            parts: What this process made, by place in the work.
            what: As for `gather`.
        """
        found = {place: value for each in self.gather(dict(parts), what) for place, value in each.items()}
        return [found[place] for place in sorted(found)]

    def any(self, flag: bool, what: str) -> bool:
        """Returns whether a flag is set in any process."""
        return any(self.gather(flag, what))

    def once(self, work: Callable[[], T], what: str) -> T:
        """Lets the first process do something that all have to wait for, such as writing a checkpoint.

        Returns:
            What the work gave, in every process.

        Raises:
            Exception: Whatever the work raised; in the other processes, a `PeerError` that says so.
        """
        return work()

    def first_here(self, work: Callable[[], T], what: str) -> T:
        """Does something in every process, but in the first one of each machine before the others.

        So a cache is filled once, by a process that fails alone if it fails, and the others find it full. Nobody waits
        for a first process that seems to be gone, so the work must have a lock of its own.

        Args:
            work: What is done.
            what: Its name, the same in all processes and used once.

        Raises:
            PeerError: Another process failed meanwhile.
        """
        return work()

    def explain(self, error: Exception) -> Exception:
        """Returns the error behind a connection that broke amid the model's own exchanges; else the error itself."""
        return error

    def host_of(self, rank: int) -> str:
        """Returns a process's rank and host, for messages."""
        return f"rank {rank}"

    def same_everywhere(self, facts: Mapping[str, str]) -> None:
        """Compares facts over all processes.

        Args:
            facts: By name, such as "the data file rows.jsonl".

        Raises:
            RunError: One process has another than most, or than the first of two; it and the fact are named.
        """
        everybody = self.gather(dict(facts), "comparing what each process has")
        usual = max(everybody, key=everybody.count)
        host = self.host_of(everybody.index(usual))
        for rank, own in enumerate(everybody):
            different = [name for name in usual | own if own.get(name) != usual.get(name)]
            if different:
                shown = "; ".join(
                    f"{name} is {_short(own.get(name))} there, and {_short(usual.get(name))} on {host}"
                    for name in different[:3]
                )
                raise RunError(
                    f"{self.host_of(rank)} has not the same as the others: {shown}. "
                    "Fix: give every process the same base model, data, configuration and versions."
                )


ALONE = World()
"""The world of a single process."""


def _short(fact: str | None) -> str:
    return "missing" if fact is None else fact if len(fact) <= 80 else f"{fact[:77]}..."
