"""What a reader yields: a `RawRow` for each readable row, and a `Fault` for each unreadable one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it is in its file.

    Attributes:
        number: Number of the row, from 1; unreadable rows count too.
        line: Line of the file, from 1, on which the row starts; 0 in files without lines (Parquet, Arrow, hub).
        value: Column -> value.
        remarks: Codes of what is odd about the row but does not make it unreadable; see `REMARKS`.
    """

    number: int
    line: int
    value: Row
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """An unreadable row. It counts as a row of the file.

    Attributes:
        code: Code of the cause, one of `FAULTS`.
        number: Number of the row, from 1.
        line: Line of the file, from 1; 0 in files without lines.
        message: What is wrong, without file and line.
        excerpt: The start of the row.
        fix: What to do about it, if that is not to correct or remove the row.
    """

    code: str
    number: int
    line: int
    message: str
    excerpt: str = ""
    fix: str = ""


# Why a row is unreadable.
FAULTS = {
    "not_json": "is not JSON",
    "not_an_object": "is JSON, but not an object with columns",
    "not_utf8": "contains bytes that are not UTF-8",
    "too_long": "is larger than the maximum size of a row",
    "wrong_cells": "has more or fewer cells than the header has columns",
    "truncated": "is truncated: the file ends, or its compression breaks, in the middle of it",
    "unreadable_rest": "and everything after it cannot be divided into rows",
}

# What is odd about a readable row.
REMARKS = {
    "byte_order_mark": "the file starts with a byte-order mark",
    "utf_16": "the file is UTF-16, as Excel saves Unicode text, and is read as such",
    "windows_1252": "the file is not UTF-8, and is read as Windows-1252, as Excel saves CSV",
    "nul": "the row contains NUL characters",
    "duplicate_key": "a key occurs twice in an object; the last one counts",
    "not_a_number": "a value is NaN or infinite, which is not JSON",
    "half_a_character": "a text contains half of a surrogate pair, which is not a character",
    "replacement_character": "a text contains U+FFFD, a sign that it was decoded wrongly earlier",
    "mojibake": "a text looks like UTF-8 that was decoded as Latin-1",
    "missing_value_word": "a cell contains NaN, null, None or N/A, which is text here",
}


# Remarks on the encoding of a file, on its first row.
ENCODINGS = frozenset({"utf_16", "windows_1252"})


class _Placed(Protocol):
    @property
    def number(self) -> int: ...
    @property
    def line(self) -> int: ...


def place_of(row: _Placed) -> str:
    """Returns the place of a row or a fault in its file, for messages: `row 3 (line 4)`."""
    return f"row {row.number}" + (f" (line {row.line})" if row.line else "")
