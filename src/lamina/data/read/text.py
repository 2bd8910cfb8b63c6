"""Reads `.txt`: plain documents. Whether a document is a line, a paragraph or the file is configured or detected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from lamina.data.read.find import DataFile
from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import Line, decoded, lines_of, remarks_on

# Number of lines to inspect to detect the unit, and the length from which a line counts as a whole document.
_LOOKED_AT = 1000
_LONG_LINE = 200


def read(file: DataFile, unit: str = "auto") -> Iterator[RawRow | Fault]:
    """Yields documents as rows with a single column, `text`.

    Args:
        file: The file.
        unit: `line`, `paragraph` (separated by empty lines), `file`, or `auto`: see `seen_unit`.
    """
    assert file.path is not None
    unit = seen_unit(file) if unit == "auto" else unit
    number, begun, parts, after_mark = 0, 1, list[str](), False
    for line in lines_of(file.path, file.compression):
        text = decoded(line) if isinstance(line, Line) else line
        if isinstance(line, Line):
            after_mark |= line.after_mark
        if isinstance(text, Fault):
            number += 1
            yield replace(text, number=number)
            continue
        empty = not text.strip()
        if parts and (unit == "line" or (unit == "paragraph" and empty)):
            number += 1
            yield _row(parts, number, begun, after_mark)
            parts = []
        if empty and not (parts and unit == "file"):
            continue
        if not parts and isinstance(line, Line):
            begun = line.number
        parts.append(text)
    if parts:
        yield _row(parts, number + 1, begun, after_mark)


def seen_unit(file: DataFile) -> str:
    """Detects the unit of a document: a line if most lines are long, or else a paragraph if there are empty lines.

    Otherwise, it is the file. Prose with short lines has empty lines between its paragraphs.
    """
    assert file.path is not None
    lines = [line for line in islice(lines_of(file.path, file.compression), _LOOKED_AT) if isinstance(line, Line)]
    full = sorted(len(line.content) for line in lines if line.content.strip())
    if full and full[len(full) // 2] >= _LONG_LINE:
        return "line"
    last = max((i for i, line in enumerate(lines) if line.content.strip()), default=0)
    return "paragraph" if any(not line.content.strip() for line in lines[:last]) else "file"


def _row(parts: list[str], number: int, line: int, after_mark: bool) -> RawRow:
    text = "\n".join(parts).rstrip("\n")
    remarks = [*remarks_on(text), *(["byte_order_mark"] if after_mark and number == 1 else [])]
    return RawRow(number, line, {"text": text}, tuple(remarks))
