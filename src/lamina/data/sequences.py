"""What is made of a row before it is trained on: which rows are taken, and which sequences each becomes.

A loss decides it (`losses/base.py`). Cross entropy takes a conversation or a text as one sequence; a loss over pairs
takes a preference as two, the prompt with either answer. The sequences of a row are rendered and encoded each by
itself, and stay together: they are dropped, drawn, split off for evaluation and packed as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lamina.data.example import Example, Kind


def itself(example: Example) -> Sequence[Example]:
    """The row as one sequence."""
    return (example,)


def nothing(example: Example) -> Mapping[str, float]:
    """No numbers."""
    return {}


@dataclass(frozen=True)
class Sequences:
    """What a loss makes of rows.

    Attributes:
        kinds: Kinds of rows that it takes.
        of: The sequences of a row, each an example of its own, always as many; they have the row's number.
        values: Numbers that go along with a row, such as its label, by name; always the same names.
        key: All that decides what `of` and `values` give, as plain data; None for `itself` without values. Encoded rows
            are cached under it.
        learns: The kinds in prose, for errors.

    Raises:
        ValueError: There is no key where one is needed, and the cache would give what others make of the same rows.
    """

    kinds: frozenset[Kind]
    of: Callable[[Example], Sequence[Example]] = itself
    values: Callable[[Example], Mapping[str, float]] = nothing
    key: Mapping[str, object] | None = None
    learns: str = ""

    def __post_init__(self) -> None:
        if self.key is None and not (self.of is itself and self.values is nothing):
            raise ValueError("sequences of one's own need a `key`, under which encoded rows are cached")


ANSWERS = Sequences(frozenset({Kind.CONVERSATION, Kind.TEXT}), learns="answers and plain text")
"""Conversations and texts, a sequence each."""
