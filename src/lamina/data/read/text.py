"""Reads `.txt`: plain documents. Whether a document is a line, a paragraph or the file is configured or detected.

Excel saves a table as "Unicode Text" under this suffix. It is refused, with the name under which it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from lamina.data.read.find import DataFile
from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import UTF16, Line, decoded, lines_of, open_bytes, remarks_on
from lamina.errors import DataError

# Number of lines to inspect to detect the unit, and the length from which a line counts as a whole document.
_LOOKED_AT = 1000
_LONG_LINE = 200


def read(file: DataFile, unit: str = "auto") -> Iterator[RawRow | Fault]:
    """Yields documents as rows with a single column, `text`.

    Args:
        file: The file.
        unit: `line`, `paragraph` (separated by empty lines), `file`, or `auto`: see `seen_unit`.

    Raises:
        DataError: It is UTF-16, or the unit is to be detected and the file is a table with tabs.
    """
    assert file.path is not None
    if _is_utf16(file):
        raise DataError(
            f"{file.name}: the file is UTF-16, as Excel saves a table as Unicode Text. Fix: if it is a table, rename "
            f"it to {_as_table(file.path)}, which is read as it is; if it is text, save it as UTF-8."
        )
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

    Raises:
        DataError: It is a table with tabs.
    """
    assert file.path is not None
    lines = [line for line in islice(lines_of(file.path, file.compression), _LOOKED_AT) if isinstance(line, Line)]
    if tabs := _tabs_of_each(lines):
        raise DataError(
            f"{file.name}: every line has {tabs} tab{'s' * (tabs > 1)}, so it looks like a table, and a .txt file is "
            f"plain text. Fix: rename it to {_as_table(file.path)} to read its columns, or set data.text_unit=line to "
            "read each line as a document."
        )
    full = sorted(len(line.content) for line in lines if line.content.strip())
    if full and full[len(full) // 2] >= _LONG_LINE:
        return "line"
    last = max((i for i, line in enumerate(lines) if line.content.strip()), default=0)
    return "paragraph" if any(not line.content.strip() for line in lines[:last]) else "file"


def _is_utf16(file: DataFile) -> bool:
    assert file.path is not None
    with open_bytes(file.path, file.compression) as begin:
        try:
            return begin.read(2) in UTF16
        except Exception:  # whatever breaks here breaks again when the lines are read, and is reported with its line
            return False


def _tabs_of_each(lines: Sequence[Line]) -> int:
    """Returns how many tabs every line has, if all of at least two have the same number; else 0."""
    filled = [line.content for line in lines if line.content.strip()]
    counts = {content.count(b"\t") for content in filled}
    return counts.pop() if len(counts) == 1 and len(filled) > 1 else 0


def _as_table(path: Path) -> str:
    """Returns the name of a text file as that of a table with tabs."""
    return re.sub(r"\.(txt|text)(?=(\.gz|\.zst)?$)", ".tsv", path.name, flags=re.IGNORECASE)


def _row(parts: list[str], number: int, line: int, after_mark: bool) -> RawRow:
    text = "\n".join(parts).rstrip("\n")
    remarks = [*remarks_on(text), *(["byte_order_mark"] if after_mark and number == 1 else [])]
    return RawRow(number, line, {"text": text}, tuple(remarks))
