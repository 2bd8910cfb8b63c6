"""Rows for the checks, made in a line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from lamina.chat.message import Message
from lamina.checks.examine import examine
from lamina.checks.findings import CheckReport
from lamina.checks.row import CheckedRow
from lamina.checks.settings import CheckSettings
from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.source import ReadRow


def settings(**changes: Any) -> CheckSettings:
    """Of a small run without a model."""
    usual: dict[str, Any] = {
        "max_length": 64,
        "overlong": "drop",
        "tokenizer": None,
        "batch_size": 4,
        "packing": True,
        "seed": 0,
        "progress": lambda rows: None,
    }
    return CheckSettings(**usual | changes)


def row(prompt: str, answer: str, number: int = 1, side: str = "train", file: str = "", **changes: Any) -> CheckedRow:
    """A question and its answer."""
    return chat((Message("user", prompt), Message("assistant", answer)), number, side, file, **changes)


def chat(
    messages: Iterable[Message],
    number: int = 1,
    side: str = "train",
    file: str = "",
    example: dict[str, Any] | None = None,
    **changes: Any,
) -> CheckedRow:
    """A conversation; `example` changes the `Example`, `changes` the row."""
    messages = tuple(messages)
    value: Any = {"messages": [{"role": message.role, "content": message.content} for message in messages]}
    usual: dict[str, Any] = {"value": value, "example": Example(messages, number, **(example or {}))}
    return checked(file or f"{side}.jsonl", number, number, side, **usual | changes)


def checked(
    file: str,
    number: int,
    line: int,
    side: str = "train",
    encoded: EncodedExample | None = None,
    refusal: str = "",
    value: Any = None,
    **read: Any,
) -> CheckedRow:
    """A row of which everything is said by name."""
    return CheckedRow(file, side, ReadRow(number, line, value, **read), encoded, refusal)


def text(words: str, number: int = 1, side: str = "train") -> CheckedRow:
    """A row of plain text."""
    example = Example((), number, kind=Kind.TEXT, text=words)
    return checked(f"{side}.txt", number, 0, side, value={"text": words}, example=example)


def encoded(tokens: int, supervised: int, number: int = 1) -> EncodedExample:
    """So many tokens, of which the last ones are in the loss."""
    return EncodedExample(np.arange(tokens, dtype=np.int32), np.arange(tokens) >= tokens - supervised, number)


def numbered(rows: Iterable[CheckedRow]) -> list[CheckedRow]:
    """The same rows with the numbers in which they stand, each side in a file of its own."""
    counts = {"train": 0, "eval": 0}
    placed = []
    for item in rows:
        counts[item.side] += 1
        number = counts[item.side]
        placed.append(replace(item, read=replace(item.read, number=number, line=number)))
    return placed


def check(rows: Iterable[CheckedRow], **changes: Any) -> CheckReport:
    """The report on rows, which are numbered."""
    return examine(numbered(rows), settings(**changes))


def found(report: CheckReport, code: str) -> list[int]:
    """Numbers of the rows that a finding shows; empty if there is no such finding."""
    finding = report.find(code)
    return [offender.place.row for offender in finding.examples] if finding else []
