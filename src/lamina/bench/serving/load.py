"""Puts a load on a target: a closed loop of so many streams, or an open one whose arrivals wait for nobody."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lamina.bench.serving.job import Answer
from lamina.bench.serving.traffic import Ask

# How long a target is waited for at a time.
_PATIENCE = 0.05


@dataclass(frozen=True)
class Event:
    """Tokens that came.

    Attributes:
        number: Of the request (`Ask.number`).
        at: When, by `time.perf_counter`.
        tokens: How many.
        done: Whether they were the last.
    """

    number: int
    at: float
    tokens: int
    done: bool


class Target(Protocol):
    """What a load is put on."""

    def ask(self, ask: Ask) -> None:
        """Takes a request, and returns without waiting for the answer."""
        ...

    def events(self, patience: float) -> list[Event]:
        """What came since the last call; waits for about `patience` seconds if that is nothing.

        Raises:
            BenchError: A request failed.
        """
        ...


@dataclass
class _Asked:
    ask: Ask
    at: float
    times: list[float] = field(default_factory=list)


class _Book:
    """Requests under way, and those that are answered."""

    def __init__(self, target: Target, began: float) -> None:
        self.answers: list[Answer] = []
        self.open: dict[int, _Asked] = {}
        self._target, self._began = target, began

    def ask(self, ask: Ask, at: float) -> None:
        self.open[ask.number] = _Asked(ask, at)
        self._target.ask(ask)

    def wait(self, patience: float) -> int:
        """Notes what came; returns how many requests were answered."""
        before = len(self.answers)
        for event in self._target.events(patience):
            asked = self.open[event.number]
            asked.times += [event.at - self._began] * event.tokens
            if event.done:
                del self.open[event.number]
                ask, at = asked.ask, asked.at - self._began
                self.answers.append(Answer(ask.adapter, len(ask.token_ids), at, asked.times))
        return len(self.answers) - before


def closed_loop(target: Target, asks: Iterator[Ask], streams: int, count: int) -> list[Answer]:
    """Asks `count` requests from `streams` clients, each of which asks its next when its last is answered.

    Returns:
        The answers, in the order in which they ended.

    Raises:
        BenchError: A request failed.
    """
    book = _Book(target, time.perf_counter())
    left = count
    ready = min(streams, count)
    while ready or book.open:
        for _ in range(min(ready, left)):
            book.ask(next(asks), time.perf_counter())
            left -= 1
        ready = book.wait(_PATIENCE)
    return book.answers


def open_loop(target: Target, asks: Iterator[Ask], arrivals: Sequence[float]) -> list[Answer]:
    """Asks a request at each time of arrival, whatever is under way.

    A target that keeps the caller waiting delays no arrival: requests count from when they were due.

    Args:
        target: What is asked.
        asks: The requests.
        arrivals: Seconds from now, ascending.

    Raises:
        BenchError: A request failed.
    """
    began = time.perf_counter()
    book = _Book(target, began)
    due = deque(began + arrival for arrival in arrivals)
    while due or book.open:
        while due and due[0] <= time.perf_counter():
            book.ask(next(asks), due.popleft())
        book.wait(min(_PATIENCE, max(0.0, due[0] - time.perf_counter())) if due else _PATIENCE)
    return book.answers
