"""Limits on what a chat template may compute: sizes and processor time, counted while it renders.

The limits grow with the conversation, apply to each thread separately, and need no signals.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sized
from typing import Any

BASE_SIZE = 1_000_000
SIZE_PER_CHARACTER = 64
TOTAL_PER_SIZE = 64
MAX_SECONDS = 1.0
MAX_BITS = 4096
STEPS_BETWEEN_CLOCKS = 1024
SHORT_LOOP = 64
MAX_INDENT = 64
# Strings up to this length are not counted; the time limit bounds their number.
SMALL = 4096


class TemplateFailure(Exception):
    """A template cannot be compiled, refuses a conversation, or exceeds its limits; the message says which."""


class Budget(threading.local):
    """What the rendering in this thread may still use."""

    size = BASE_SIZE
    left = BASE_SIZE * TOTAL_PER_SIZE
    steps = 0
    deadline: float | None = None

    def start(self, characters: int) -> None:
        self.size = BASE_SIZE + SIZE_PER_CHARACTER * characters
        self.left = self.size * TOTAL_PER_SIZE
        self.steps = 0
        self.deadline = None

    def step(self) -> None:
        self.steps += 1
        if self.steps % STEPS_BETWEEN_CLOCKS == 0:
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        now = time.thread_time()
        if self.deadline is None:
            self.deadline = now + MAX_SECONDS
        elif now > self.deadline:
            raise TemplateFailure(f"it takes more than {MAX_SECONDS:g} s to compute (is there an endless loop?)")

    def spend(self, size: int) -> None:
        self.left -= size
        if size > self.size or self.left < 0:
            raise TemplateFailure(
                f"it produces more than {self.size:,} characters from a text of "
                f"{(self.size - BASE_SIZE) // SIZE_PER_CHARACTER:,}"
            )


budget = Budget()


def weigh(value: Any) -> int:
    """Returns about how many characters the value has as text, repeated values included. Stops past the limit."""
    if isinstance(value, (str, bytes)):
        return len(value)
    weight = 0
    for item in leaves(value):
        weight += len(item) if isinstance(item, (str, bytes)) else 1
        if weight > budget.size:
            break
    return weight


def leaves(value: Any) -> Iterator[Any]:
    """Yields the value and everything nested in it."""
    rest = [value]
    while rest:
        item = rest.pop()
        budget.step()
        yield item
        if isinstance(item, Mapping):
            rest.extend(item.keys())
            rest.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            rest.extend(item)


def guard(name: str, subject: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses a call of a filter or method whose result would be too large, before the call."""
    values = [*args, *kwargs.values()]
    numbers = [abs(value) for value in values if isinstance(value, int)]
    if numbers and (largest := max(numbers)) > SHORT_LOOP:
        budget.spend(largest)
    match name:
        case "replace" if isinstance(subject, (str, bytes)) and len(values) > 1:
            budget.spend(len(subject) + subject.count(values[0]) * weigh(values[1]))
        case "join" if isinstance(subject, (str, bytes)) and values:
            items = values[0] if isinstance(values[0], Sized) else ()
            budget.spend(weigh(items) + len(items) * len(subject))
        case "join" if isinstance(subject, Sized):
            budget.spend(weigh(subject) + len(subject) * sum(map(weigh, values)))
        case "format" if isinstance(subject, str):
            budget.spend(formatted_size(subject, values))
        case "indent" | "expandtabs" if isinstance(subject, str):
            width = max([8, *numbers, *map(weigh, values)])
            budget.spend(len(subject) + (subject.count("\n") + subject.count("\t") + 1) * width)
        case "translate":
            budget.spend(weigh(subject) * (1 + weigh(values)))
        case "tojson":
            if any(number > MAX_INDENT for number in numbers) or any(weigh(value) > MAX_INDENT for value in values):
                raise TemplateFailure(f"it indents by more than {MAX_INDENT}")
            budget.spend(weigh(subject))
        case "string" | "upper" | "lower" | "title" | "capitalize" | "trim":
            budget.spend(weigh(subject))


def formatted_size(text: str, values: Any) -> int:
    """Returns an upper bound on the length of a formatted string, including widths in the text and in the values."""
    widths = sum(int(digits) for digits in re.findall(r"\d{1,12}", text))
    largest = max((abs(item) for item in leaves(values) if isinstance(item, int)), default=0)
    fields = text.count("{") + text.count("%")
    return len(text) + widths + fields * (largest + weigh(values))


def check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise TemplateFailure(f"it calculates with numbers of more than {MAX_BITS} bits")
