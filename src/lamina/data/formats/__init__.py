"""The formats that a row may have, one file each, found by discovery.

A format's file defines `FIELDS` and `OPTIONAL_FIELDS` (the columns it reads), `detect(row)`, and `parse(row, number)`,
which returns the row's `Example` or raises `RowError`. The file's name is the format's name in the configuration. Other
packages add formats with entry points (`lamina/plugins.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from lamina import plugins
from lamina.data.example import Example
from lamina.data.formats._fields import RowError
from lamina.errors import ConfigError, DataError


class Format(Protocol):
    """What a format's module defines.

    Attributes:
        FIELDS: Required columns.
        OPTIONAL_FIELDS: Optional columns.
    """

    FIELDS: tuple[str, ...]
    OPTIONAL_FIELDS: tuple[str, ...]

    def detect(self, row: Mapping[str, Any]) -> bool:
        """Returns whether a row has this format."""
        ...

    def parse(self, row: Mapping[str, Any], number: int) -> Example:
        """Parses a row; `number` is its number in the file, from 1.

        Raises:
            RowError: The row cannot be used; the message says why.
        """
        ...


def _discover() -> dict[str, Format]:
    """Returns every format that can be imported; `load_member` reports why the others cannot."""
    found = {}
    for name in sorted(plugins.members("formats")):
        with contextlib.suppress(ConfigError):
            found[name] = cast(Format, plugins.load_member("formats", name))
    return found


FORMATS: dict[str, Format] = _discover()
_UNKNOWN = "unknown format"

# Enough rows to recognize a mixed file, and few enough to be instant.
DETECT_ROWS = 200
# How overrides map columns. Each is one word for a shell, unlike a mapping in braces.
MAP_COLUMNS = "data.columns.prompt=YOUR_COLUMN data.columns.completion=YOUR_OTHER_COLUMN"
# A format must match at least this share of the rows to be chosen. The rows that do not match it are then reported one
# by one.
MOST = 0.8


def choose_format(rows: Sequence[Mapping[str, Any]], wanted: str, name: str, places: Sequence[str] = ()) -> Format:
    """Returns the format named in the configuration, or the only one that matches the first rows.

    Args:
        rows: The first rows of the file, at least one.
        wanted: A format's name, or `auto`.
        name: The file's name, for errors.
        places: The place of each row in the file, for errors; by default they are counted from 1.

    Raises:
        DataError: No format matches, or several do.
    """
    if wanted != "auto":
        return FORMATS[wanted] if wanted in FORMATS else cast(Format, plugins.load_member("formats", wanted))
    hits = {format_name: sum(module.detect(row) for row in rows) for format_name, module in FORMATS.items()}
    most = max(hits.values())
    if most < MOST * len(rows):
        raise DataError(f"{name}: {_no_format(rows, hits, places)}")
    fitting = [format_name for format_name, count in hits.items() if count == most]
    if len(fitting) > 1:
        raise DataError(
            f"{name}: the rows match more than one format: {', '.join(fitting)}. Fix: set data.format to one of them."
        )
    return FORMATS[fitting[0]]


def name_of(module: Format) -> str:
    """Returns the name of a format, which is the name of its file."""
    return next((name for name, known in FORMATS.items() if known is module), "")


def column_names(row: Mapping[str, Any]) -> str:
    """Returns a row's column names, for messages."""
    return ", ".join(repr(str(key)) for key in list(row)[:12]) or "none"


def is_mappable(refusal: str) -> bool:
    """Returns whether `data.columns` may help where no format matched: the columns are of no format at all."""
    return f": {_UNKNOWN}; " in refusal


def _no_format(rows: Sequence[Mapping[str, Any]], hits: Mapping[str, int], places: Sequence[str]) -> str:
    found = {name: count for name, count in hits.items() if count}
    if not found:
        reason = _inside(rows, places)
        if reason:
            return f"{reason}. Fix: correct the field in every row, or map other columns with data.columns."
        shapes = "; ".join(_shape(name, module) for name, module in FORMATS.items())
        blanks = " (in a shell, with quotes around each if the column's name has blanks)"
        return (
            f"{_UNKNOWN}; the columns are {column_names(rows[0])}. Known formats: {shapes}. Fix: map your "
            f"columns, such as {MAP_COLUMNS}{blanks if any(' ' in str(name) for name in rows[0]) else ''}."
        )
    most = max(found, key=lambda name: found[name])
    odd = next(number for number, row in enumerate(rows) if not FORMATS[most].detect(row))
    place = places[odd] if places else f"row {odd + 1}"
    counts = ", ".join(f"{count} match {name}" for name, count in found.items())
    return (
        f"rows have different formats: of the first {len(rows)}, {counts}; {place} has the columns "
        f"{column_names(rows[odd])}. Fix: give every row the same format, or put each format into a file of its "
        "own, and list the files: data.train=[a.jsonl, b.jsonl]."
    )


def _inside(rows: Sequence[Mapping[str, Any]], places: Sequence[str]) -> str:
    """Returns what is wrong inside the fields of the first row that has the columns of a format; empty if none has."""
    for number, row in enumerate(rows):
        for name, module in FORMATS.items():
            if module.FIELDS == ("label",) or not {*module.FIELDS} <= {*row}:
                continue
            try:
                module.parse(row, number + 1)
            except RowError as error:
                place = places[number] if places else f"row {number + 1}"
                return f"{place} has the columns of the format {name!r}, but {error}"
    return ""


def _shape(name: str, module: Format) -> str:
    optional = f"; optionally {', '.join(module.OPTIONAL_FIELDS)}" if module.OPTIONAL_FIELDS else ""
    return f"{name} ({', '.join(module.FIELDS)}{optional})"
