"""What a reader gives: a `RawRow` for each row that can be read, and a `Fault` for each that cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in its file.

    Attributes:
        number: Counted from 1; rows that cannot be read count too.
        line: Of the file, counted from 1, where the row begins; 0 in files that have no lines (parquet, arrow, hub).
        value: Column -> value.
        remarks: Codes of what is odd about the row but does not keep it from being read; see `REMARKS`.
    """

    number: int
    line: int
    value: Row
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be read. It counts as a row of the file.

    Attributes:
        code: A name for the cause, one of `FAULTS`.
        number: The row, counted from 1.
        line: Of the file, counted from 1; 0 in files that have no lines.
        message: What is wrong, without file and line.
        excerpt: How the row begins.
    """

    code: str
    number: int
    line: int
    message: str
    excerpt: str = ""


# Why a row cannot be read.
FAULTS = {
    "not_json": "is not JSON",
    "not_an_object": "is JSON, but not an object with columns",
    "not_utf8": "holds bytes that are not UTF-8",
    "too_long": "is larger than any row may be",
    "wrong_cells": "has more or fewer cells than the header has columns",
    "truncated": "is cut off: the file ends, or its compression breaks, in the middle of it",
    "unreadable_rest": "and all that follows cannot be told apart into rows",
}

# What is odd about a row that can be read.
REMARKS = {
    "byte_order_mark": "the file begins with a byte-order mark",
    "nul": "the row holds NUL characters",
    "duplicate_key": "a key stands twice in an object; the last one counts",
    "not_a_number": "a value is NaN or infinite, which is not JSON",
    "half_a_character": "a text holds half of a surrogate pair, which is no character",
    "replacement_character": "a text holds U+FFFD, so it was decoded wrongly before",
    "mojibake": "a text reads like UTF-8 that was decoded as Latin-1",
    "missing_value_word": "a cell reads NaN, null, None or N/A, which is text here",
}


class _Placed(Protocol):
    @property
    def number(self) -> int: ...
    @property
    def line(self) -> int: ...


def place_of(row: _Placed) -> str:
    """Where a row or a fault stands in its file, for messages: `row 3 (line 4)`."""
    return f"row {row.number}" + (f" (line {row.line})" if row.line else "")
