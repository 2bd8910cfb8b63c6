"""Rows for the checks, made in a line each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lamina.data.check.examine import examine
from lamina.data.check.findings import CheckReport
from lamina.data.check.row import CheckedRow, Place
from lamina.data.check.settings import CheckSettings
from lamina.data.example import EncodedExample, Example, Kind, Message


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
    value = {"messages": [{"role": message.role, "content": message.content} for message in messages]}
    usual: dict[str, Any] = {"value": value, "example": Example(messages, number, **(example or {}))}
    return CheckedRow(Place(file or f"{side}.jsonl", number, number), side, **usual | changes)


def text(words: str, number: int = 1, side: str = "train") -> CheckedRow:
    """A row of plain text."""
    example = Example((), number, kind=Kind.TEXT, text=words)
    return CheckedRow(Place(f"{side}.txt", number, 0), side, {"text": words}, example=example)


def encoded(tokens: int, supervised: int, number: int = 1) -> EncodedExample:
    """So many tokens, of which the last ones are in the loss."""
    return EncodedExample(np.arange(tokens, dtype=np.int32), np.arange(tokens) >= tokens - supervised, number)


def numbered(rows: Iterable[CheckedRow]) -> list[CheckedRow]:
    """The same rows with the numbers in which they stand, each side in a file of its own."""
    counts = {"train": 0, "eval": 0}
    placed = []
    for item in rows:
        counts[item.side] += 1
        place = Place(item.place.file, counts[item.side], counts[item.side])
        changes = {name: getattr(item, name) for name in CheckedRow.__slots__} | {"place": place}
        placed.append(CheckedRow(**changes))
    return placed


def check(rows: Iterable[CheckedRow], **changes: Any) -> CheckReport:
    """The report on rows, which are numbered."""
    return examine(numbered(rows), settings(**changes))


def found(report: CheckReport, code: str) -> list[int]:
    """Numbers of the rows that a finding shows; empty if there is no such finding."""
    finding = report.find(code)
    return [offender.place.row for offender in finding.examples] if finding else []
