"""Who asks what, and when: prompts in turn, adapters by their popularity, arrivals of a Poisson process."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# More adapters than this are popular as Zipf's law says; up to it, all are asked for alike, so that a batch mixes them.
ALIKE = 32


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        number: Its place among all of a process.
        token_ids: The prompt.
        adapter: Who is to answer; None for the bare base.
    """

    number: int
    token_ids: list[int]
    adapter: str | None


def asks(prompts: Sequence[list[int]], adapters: Sequence[str], seed: int) -> Iterator[Ask]:
    """Requests without end: the prompts in turn, each to an adapter.

    Args:
        prompts: Token ids; they begin anew when all were asked.
        adapters: Names, the most popular first; none for the bare base.
        seed: Of the draws of adapters.
    """
    names = popular(adapters, seed)
    for number, prompt in enumerate(itertools.cycle(prompts)):
        yield Ask(number, prompt, next(names))


def popular(adapters: Sequence[str], seed: int) -> Iterator[str | None]:
    """Names without end: in turn up to `ALIKE`, else number k with a probability in proportion to 1 / k."""
    if not adapters:
        yield from itertools.repeat(None)
    elif len(adapters) <= ALIKE:
        yield from itertools.cycle(adapters)
    weights = 1.0 / np.arange(1, len(adapters) + 1)
    generator = np.random.default_rng(seed)
    while True:
        yield adapters[int(generator.choice(len(adapters), p=weights / weights.sum()))]


def poisson_arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Times of arrival in seconds, ascending.

    Args:
        rate: Arrivals per second in the mean.
        count: How many.
        seed: Of the draws.
    """
    return np.random.default_rng(seed).exponential(1.0 / rate, count).cumsum().tolist()
