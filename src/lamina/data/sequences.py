"""What is made of a row before it is trained on: which rows are taken, and which sequences each becomes.

A loss decides it (`losses/base.py`). Cross entropy takes a conversation or a text as one sequence; a loss over pairs
takes a preference as two, the prompt with either answer. The sequences of a row are rendered and encoded each by
itself, and stay together: they are dropped, drawn, split off for evaluation and packed as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lamina.data.example import Example, Kind


def itself(example: Example) -> Sequence[Example]:
    """The row as one sequence."""
    return (example,)


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
    """

    kinds: frozenset[Kind]
    of: Callable[[Example], Sequence[Example]] = itself
    values: Callable[[Example], Mapping[str, float]] = field(default=lambda example: {})
    key: Mapping[str, object] | None = None
    learns: str = ""


ANSWERS = Sequences(frozenset({Kind.CONVERSATION, Kind.TEXT}), learns="answers and plain text")
"""Conversations and texts, a sequence each."""
