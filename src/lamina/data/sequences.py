"""How rows become sequences for training: which rows are accepted, and what sequences each becomes.

The loss decides it (`losses/base.py`). Cross entropy takes a conversation or a text as one sequence; a loss over pairs
takes a preference as two: the prompt with either answer. The sequences of a row are rendered and encoded separately,
and stay together: they are dropped, drawn, split off for evaluation and packed as one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lamina.data.example import EncodedExample, Example, Kind


def itself(example: Example) -> Sequence[Example]:
    """Returns the row as one sequence."""
    return (example,)


def nothing(example: Example) -> Mapping[str, float]:
    """Returns no values."""
    return {}


def all_fit(encoded: EncodedExample) -> str:
    """Drops no row."""
    return ""


@dataclass(frozen=True)
class Sequences:
    """How a loss turns rows into sequences.

    Attributes:
        kinds: Kinds of rows that it accepts.
        of: Returns the sequences of a row, each an example with the row's number; always the same number of them.
        values: Returns numbers that go with a row, such as its label, by name; always the same names.
        key: Everything that determines the results of `of` and `values`, as plain data; None for `itself` without
            values. It is part of the cache key of encoded rows.
        learns: The supported kinds in words, for errors.
        whole_rows: Whether rows are trained on whole or not at all, with nothing but their last answers in the loss.
        pooled: Whether the loss reads one state of each row, that of its last token, so that every row counts and a
            row that is too long is cut.
        unfit: Returns why an encoded row cannot be used (a key of `DROP_REASONS`); empty if it can.
        label: Name of the value that says which group a row belongs to, if the loss needs rows of several.

    Raises:
        ValueError: A key is required and missing, so that the cache could return another loss's sequences.
    """

    kinds: frozenset[Kind]
    of: Callable[[Example], Sequence[Example]] = itself
    values: Callable[[Example], Mapping[str, float]] = nothing
    key: Mapping[str, object] | None = None
    learns: str = ""
    whole_rows: bool = False
    pooled: bool = False
    unfit: Callable[[EncodedExample], str] = all_fit
    label: str = ""

    def __post_init__(self) -> None:
        if self.key is None and not (self.of is itself and self.values is nothing and self.unfit is all_fit):
            raise ValueError("custom sequences need a `key`, under which encoded rows are cached")


ANSWERS = Sequences(frozenset({Kind.CONVERSATION, Kind.TEXT}), learns="answers and plain text")
"""Conversations and texts, one sequence each."""
