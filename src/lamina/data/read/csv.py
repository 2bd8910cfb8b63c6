"""Reads `.csv` and `.tsv`: a header, then rows of cells; every cell is text.

Cells are separated by commas, semicolons, tabs or bars. Files that Excel saves as UTF-16 or Windows-1252 are read, too.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from lamina.data.read.find import DataFile
from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import ROW_BYTES, Line, decoded, excerpt, is_missing_word, remarks_on
from lamina.data.read.table import checked_header, encoding_of, perhaps_a_title, table_lines
from lamina.errors import DataError

_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
# A header that spans more lines than this, or more characters, has a quote that is not meant as one.
_HEADER_LINES = 100
_LONGEST_HEADER = 2**18
# A first line with which Excel is told the separator.
_SEPARATOR = re.compile(r"\s*sep=(.)\s*", re.IGNORECASE)
# Remark on a file in another encoding.
_REMARK = {**dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be"), "utf_16"), "cp1252": "windows_1252"}


def read(file: DataFile) -> Iterator[RawRow | Fault]:
    """Yields the rows below the header.

    Raises:
        DataError: There is no header, the file is not CSV, or the header repeats a column.
    """
    text = _Text(file)
    first = next(text, None)
    if first is None:
        return
    told = _SEPARATOR.fullmatch(first)
    if told is not None:
        text.next_row()
        first = next(text, "")
    # The limit is global to the process. Its default is 128 kB, less than a long document.
    csv.field_size_limit(ROW_BYTES)
    cells, delimiter = _first_record(first, text, told[1] if told else "\t" if ".tsv" in file.name else "", file.name)
    header = checked_header(cells, file.name)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    top = text.line
    number, begun = 0, text.next_row()
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            number += 1
            yield _broken_row(error, number, begun, text)
            reader = csv.reader(text, delimiter=delimiter, strict=True)
        else:
            if any(cells):
                number += 1
                row = _row(cells, header, number, begun, text)
                yield perhaps_a_title(row, header, top) if number == 1 and len(cells) > len(header) else row
        begun = text.next_row()
    if text.cut is not None:
        yield replace(text.cut, number=number + 1)


def _first_record(first: str, text: _Text, told: str, name: str) -> tuple[list[str], str]:
    """Returns the cells of the header, which may have line breaks inside quotes, and the delimiter.

    Args:
        first: The first line.
        text: The lines after it.
        told: The delimiter, if it is known; else empty.
        name: The file, for errors.

    Raises:
        DataError: The header is not CSV.
    """
    lines = [first]
    while len(lines) <= _HEADER_LINES and _is_open("".join(lines), told or _DELIMITERS):
        line = next(text, None)
        if line is None:
            break
        lines.append(line)
    if len(lines) > 1:
        delimiter = told or _delimiter_of("".join(lines))
        try:
            (cells,) = csv.reader(lines, delimiter=delimiter, strict=True)
        except (csv.Error, ValueError):  # the quote belongs to a heading, or is never closed
            text.go_back()
        else:
            return cells, delimiter
    delimiter = told or _delimiter_of(first)
    try:
        return next(csv.reader([first], delimiter=delimiter), []), delimiter
    except csv.Error as error:
        raise DataError(
            f"{name}: the first line is not a header: {error}. Fix: end lines with \\n or \\r\\n, not with \\r alone."
        ) from None


def _delimiter_of(header: str) -> str:
    return max(_DELIMITERS, key=_QUOTED.sub("", header).count)


def _is_open(record: str, delimiters: str) -> bool:
    """Returns whether a quoted cell goes on after the text; a quote inside a cell without quotes does not begin one."""
    if '"' not in record or len(record) > _LONGEST_HEADER:
        return False
    inside, before = False, ""
    for character in record.replace('""', ""):
        if character == '"' and (inside or before in ("", *delimiters)):
            inside = not inside
        before = character
    return inside


def _broken_row(error: csv.Error, number: int, begun: int, text: _Text) -> Fault:
    beginning = excerpt(text.first_line)
    if "unexpected end" in str(error) or "field larger" in str(error):
        text.go_back()
        return Fault("truncated", number, begun, "a quoted cell is never closed", beginning)
    reason = f"is not CSV: {error}"
    if text.line > begun:
        reason += (
            f"; a quoted cell that starts here ends in line {text.line}, and everything up to there is skipped with it"
        )
    return Fault("wrong_cells", number, begun, reason, beginning)


def _row(cells: list[str], header: list[str], number: int, line: int, text: _Text) -> RawRow | Fault:
    if text.broken is not None:
        return replace(text.broken, number=number)
    while len(cells) > len(header) and not cells[-1]:  # empty columns to the right, as spreadsheets write them
        cells.pop()
    if len(cells) != len(header):
        message = f"has {len(cells)} cells, but the header has {len(header)} columns"
        return Fault("wrong_cells", number, line, message, excerpt(" | ".join(cells)))
    remarks = remarks_on("\n".join(cells))
    if any(map(is_missing_word, cells)):
        remarks.append("missing_value_word")
    if text.after_mark and number == 1:
        remarks.append("byte_order_mark")
    if number == 1 and text.encoding in _REMARK:
        remarks.append(_REMARK[text.encoding])
    return RawRow(number, line, dict(zip(header, cells, strict=True)), tuple(remarks))


class _Text:
    """The file's lines as text for the csv module, which remembers lines that could not be decoded.

    Attributes:
        line: Number of the last line returned.
        broken: A line since `next_row` that is not UTF-8.
        cut: Why the end of the file could not be read.
        after_mark: Whether the file started with a byte-order mark.
        encoding: The file's encoding.
    """

    def __init__(self, file: DataFile) -> None:
        assert file.path is not None
        self.encoding = encoding_of(file.path, file.compression)
        self._lines = table_lines(file.path, file.compression, self.encoding)
        self._again: deque[Line] = deque()
        self._row: list[Line] = []
        self.line = 0
        self.broken: Fault | None = None
        self.cut: Fault | None = None
        self.after_mark = False

    def __iter__(self) -> _Text:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines, None) if self.cut is None else None
        if isinstance(line, Fault):
            self.cut = line
        if not isinstance(line, Line):
            raise StopIteration
        self._row.append(line)
        self.line = line.number
        self.after_mark |= line.after_mark
        text = decoded(line)
        if isinstance(text, Fault):
            self.broken = text
            text = line.content.decode("latin-1")
        return text + "\n"

    @property
    def first_line(self) -> bytes:
        """The first line of the row."""
        return self._row[0].content

    def next_row(self) -> int:
        """Ends the row, and returns the number of the next row's first line."""
        self.broken = None
        self._row = []
        return self.line + 1

    def go_back(self) -> None:
        """Puts back all lines of the row except the first."""
        self._again.extendleft(reversed(self._row[1:]))
        self._row = self._row[:1]
        self.line = self._row[0].number
