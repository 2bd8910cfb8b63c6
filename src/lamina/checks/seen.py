"""A row that all checks share: its texts are only assembled once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from lamina.checks.private import Private, mask, scan
from lamina.checks.row import CheckedRow, Offender
from lamina.checks.settings import CheckSettings
from lamina.data.example import Example
from lamina.data.report import CHOSEN_REASONS

EXCERPT_CHARACTERS = 200

# A row dropped for one of these reasons is a good row: other settings would train on it.
SETTINGS_REASONS = CHOSEN_REASONS | {"longer_than_max_length", "no_supervised_tokens"}


class Seen:
    """One row, for all checks.

    Attributes:
        row: The row.
        index: Its index among all rows of both sides and all files.
    """

    def __init__(self, row: CheckedRow, index: int) -> None:
        self.row = row
        self.index = index

    @property
    def example(self) -> Example | None:
        """The parsed example, if the row could be parsed."""
        return self.row.read.example

    @property
    def trains(self) -> bool:
        """Whether the row is trained on."""
        return self.row.side != "eval"

    @cached_property
    def empty(self) -> bool:
        """Whether the row has nothing to train on, whatever the settings."""
        return bool(self.row.read.drop_reason) and self.row.read.drop_reason not in SETTINGS_REASONS

    @cached_property
    def usable(self) -> Example | None:
        """The example, if it can be read, fits its format and is not empty."""
        return None if self.empty or self.row.refusal else self.row.read.example

    def left_out(self, settings: CheckSettings) -> str:
        """Returns why training drops the row (a key of `DROP_REASONS`, by its tokens if known); empty if kept."""
        encoded, fate = self.row.encoded, settings.fate(self.example)
        if self.row.read.drop_reason or encoded is None:
            return self.row.read.drop_reason
        if fate == "drop" and self.row.tokens > settings.max_length:
            return "longer_than_max_length"
        in_loss = encoded.supervised[: None if fate == "split" else settings.max_length]
        return "" if in_loss.any() else "no_supervised_tokens"

    @cached_property
    def text(self) -> str:
        """All of the row's text; for a row that does not fit its format, the text in its columns."""
        if self.example is not None:
            return self.example.words()
        if self.row.read.fault is not None:
            return self.row.read.fault.excerpt
        return "\n".join(_strings(self.row.read.value))

    @cached_property
    def prompt(self) -> str:
        """The text that the final answer responds to; for plain text, the text itself.

        System turns are excluded, since many rows share them, and would all be similar.
        """
        example = self.example
        if example is None:
            return ""
        if example.text:
            return example.text
        return "\n".join(message.words() for message in example.prompt if message.role != "system")

    @cached_property
    def reply(self) -> str:
        """The final turn and, for a preference, the rejected one; empty for plain text."""
        example = self.example
        if example is None:
            return ""
        return "\n".join(message.words() for message in (*example.messages[-1:], *example.rejected))

    @cached_property
    def answers(self) -> list[str]:
        """The text of each assistant turn; for a preference, only of the chosen answer."""
        if self.example is None:
            return []
        return [message.content for message in self.example.messages if message.role == "assistant"]

    @cached_property
    def answer(self) -> str:
        """The text of the final assistant turn; empty if there is none."""
        return self.answers[-1] if self.answers else ""

    @cached_property
    def private(self) -> list[Private]:
        """Personal data and secrets in the text."""
        return scan(self.text)

    def excerpt(self, at: int = 0, length: int = EXCERPT_CHARACTERS) -> str:
        """Returns the text starting a little before character `at`, on one line, with everything private masked."""
        first = max(0, at - length // 4)
        last = first + 2 * length
        inside = [item for item in self.private if item.start < last and item.end > first]
        if inside:
            first, last = min(first, inside[0].start), max(last, inside[-1].end)
        inside = [Private(item.kind, item.start - first, item.end - first, item.secret) for item in inside]
        line = " ".join(mask(self.text[first:last], inside).split())
        return line if len(line) <= length else line[: length - 1] + "…"

    def offender(self, detail: str = "", at: int = 0) -> Offender:
        """Returns the row as an example of a finding. The detail is masked too, since it may quote the row."""
        return Offender(self.row.place, self.excerpt(at), mask(detail))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
