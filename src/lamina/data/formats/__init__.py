"""The shapes that a row may have, one file each, found by discovery.

A format's file defines `FIELDS` and `OPTIONAL_FIELDS` (the columns it reads), `detect(row)` and `parse(row, number)`,
which gives the row's `Example` or raises `RowError`. The file's name is the format's name in the config. Other
packages add formats by entry points (`lamina/plugins.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from lamina import plugins
from lamina.data.example import Example
from lamina.errors import ConfigError, DataError


class Format(Protocol):
    """What a format's module defines.

    Attributes:
        FIELDS: Columns that a row must have.
        OPTIONAL_FIELDS: Columns that it reads where they are there.
    """

    FIELDS: tuple[str, ...]
    OPTIONAL_FIELDS: tuple[str, ...]

    def detect(self, row: Mapping[str, Any]) -> bool:
        """Says whether a row is of this format."""
        ...

    def parse(self, row: Mapping[str, Any], number: int) -> Example:
        """Reads a row; `number` is its number in the file, from 1.

        Raises:
            RowError: The row cannot be used; the text says what of it.
        """
        ...


def _discover() -> dict[str, Format]:
    """Every format that can be imported; `load_member` says of the others why not."""
    found = {}
    for name in sorted(plugins.members("formats")):
        with contextlib.suppress(ConfigError):
            found[name] = cast(Format, plugins.load_member("formats", name))
    return found


FORMATS: dict[str, Format] = _discover()

# Enough rows to see a mixed file, few enough to be instant.
DETECT_ROWS = 200
# A format that fits fewer of the rows than this is not the file's; the rows that do not fit a format that does are
# named one by one when they are read.
MOST = 0.8


def choose_format(rows: Sequence[Mapping[str, Any]], wanted: str, name: str, places: Sequence[str] = ()) -> Format:
    """The format named by the config, or the only one that fits the first rows.

    Args:
        rows: The first rows of the file, at least one.
        wanted: A format's name, or `auto`.
        name: Of the file, for errors.
        places: Where each of the rows stands in the file, for errors; without it they are counted from 1.

    Raises:
        DataError: No format fits, or several do.
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
            f"{name}: the rows fit more than one format: {', '.join(fitting)}. Fix: set data.format to one of them."
        )
    return FORMATS[fitting[0]]


def name_of(module: Format) -> str:
    """The name of a format, which is that of its file."""
    return next((name for name, known in FORMATS.items() if known is module), "")


def column_names(row: Mapping[str, Any]) -> str:
    """A row's columns, for messages."""
    return ", ".join(repr(str(key)) for key in list(row)[:12]) or "none"


def _no_format(rows: Sequence[Mapping[str, Any]], hits: Mapping[str, int], places: Sequence[str]) -> str:
    found = {name: count for name, count in hits.items() if count}
    if not found:
        shapes = "; ".join(_shape(name, module) for name, module in FORMATS.items())
        return (
            f"no known format; the columns are {column_names(rows[0])}. Known formats: {shapes}. "
            "Fix: map your columns, such as data.columns={prompt: YOUR_COLUMN, completion: YOUR_OTHER_COLUMN}."
        )
    most = max(found, key=lambda name: found[name])
    odd = next(number for number, row in enumerate(rows) if not FORMATS[most].detect(row))
    place = places[odd] if places else f"row {odd + 1}"
    counts = ", ".join(f"{count} fit {name}" for name, count in found.items())
    return (
        f"rows have different shapes: of the first {len(rows)}, {counts}; {place} has the columns "
        f"{column_names(rows[odd])}. Fix: give every row the same shape, or put each shape into a file of its own."
    )


def _shape(name: str, module: Format) -> str:
    optional = f"; optionally {', '.join(module.OPTIONAL_FIELDS)}" if module.OPTIONAL_FIELDS else ""
    return f"{name} ({', '.join(module.FIELDS)}{optional})"
