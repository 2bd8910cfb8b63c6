"""What CSV and Excel files share: the header of a table, and the encodings that spreadsheets write."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import ROW_BYTES, UTF16, Line, lines_of, open_bytes
from lamina.errors import DataError

_CHUNK = 2**18
# Bytes from the start of a file that are looked at to find its encoding.
_LOOKED_AT = 2**26
# Bytes of a first line that are looked at for zeros.
_LONGEST_HEADER = 2**12
_ESCAPED = re.compile("[\udc80-\udcff]")
_BREAK = re.compile(r"\s*[\r\n]+\s*")


def checked_header(cells: Sequence[str], name: str) -> list[str]:
    """Returns the names of the columns; empty cells to their right do not count, and a line break is a blank.

    Raises:
        DataError: There is none, or one occurs twice or has no name.
    """
    names = [_BREAK.sub(" ", cell.strip()) for cell in cells]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DataError(f"{name}: the first line is not a header. Fix: name the columns in the first line.")
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: the header contains the column {twice!r} twice. Fix: rename one of them.")
    return names


def perhaps_a_title(row: RawRow | Fault, header: Sequence[str], line: int) -> RawRow | Fault:
    """Returns the first row; if it has more cells than the header, it says that the header may be a title.

    Args:
        row: The first row.
        header: The names of the columns.
        line: The header's line.
    """
    if isinstance(row, RawRow) or row.code != "wrong_cells":
        return row
    names = ", ".join(map(repr, header[:3])) + (", ..." if len(header) > 3 else "")
    return replace(
        row,
        message=f"{row.message}; line {line} ({names}) was taken as the header",
        fix=f"if line {line} is a title above the headings, delete that line; otherwise, correct or remove the row",
    )


def encoding_of(path: Path, compression: str) -> str:
    """Returns the encoding of a table: `utf-16` by its byte-order mark, `utf-16-le` or `utf-16-be` by its zeros,
    `cp1252` (Windows-1252), else `utf-8`.

    It is Windows-1252 if there are bytes that are not UTF-8, and no character of several bytes that is. A file with
    both is UTF-8 with faults.

    Raises:
        StorageError: The file cannot be opened.
    """
    decoder, looked_at, foreign = codecs.getincrementaldecoder("utf-8")("surrogateescape"), 0, False
    with open_bytes(path, compression) as file:
        while looked_at < _LOOKED_AT:
            try:
                chunk = file.read(_CHUNK)
            except Exception:  # whatever breaks here breaks again when the rows are read, and is reported with its line
                break
            if not looked_at and chunk.startswith(UTF16):
                return "utf-16"
            if not looked_at and (unmarked := _utf16_without_mark(chunk)):
                return unmarked
            looked_at += len(chunk)
            text = decoder.decode(chunk, final=not chunk)
            if not text.isascii():
                rest = _ESCAPED.sub("", text.removeprefix("\ufeff"))
                if not rest.isascii():
                    return "utf-8"
                foreign = True
            if not chunk:
                break
    return "cp1252" if foreign else "utf-8"


def table_lines(path: Path, compression: str, encoding: str) -> Iterator[Line | Fault]:
    """Yields the lines of a table in UTF-8, whatever its encoding; see `lines_of`.

    A line that does not decode is yielded as it is, so that it is reported as not UTF-8.
    """
    if encoding.startswith("utf-16"):
        yield from _utf16_lines(path, compression, encoding)
        return
    for line in lines_of(path, compression):
        if encoding == "utf-8" or isinstance(line, Fault) or line.content.isascii():
            yield line
            continue
        try:
            yield Line(line.number, line.content.decode(encoding).encode("utf-8"))
        except UnicodeDecodeError:
            yield line


def _utf16_without_mark(beginning: bytes) -> str:
    """Returns UTF-16's byte order by the first line, half of whose bytes are zero if it is in Latin letters; empty if
    it is something else."""
    begin = beginning[:_LONGEST_HEADER]
    line = begin[: begin.find(b"\n") + 2] if b"\n" in begin else begin
    zeros = [line[start::2].count(0) for start in (0, 1)]
    most, least = max(zeros), min(zeros)
    if least or most < len(line) // 4 or not most:
        return ""
    return "utf-16-be" if zeros[0] else "utf-16-le"


def _utf16_lines(path: Path, compression: str, encoding: str) -> Iterator[Line | Fault]:
    with open_bytes(path, compression) as file:
        text = io.TextIOWrapper(cast(io.BufferedReader, file), encoding=encoding, newline="\n")
        number = 0
        while True:
            number += 1
            try:
                line = text.readline(ROW_BYTES + 1)
            except (UnicodeError, EOFError, OSError) as error:
                yield Fault("truncated", 0, number, f"the UTF-16 text breaks here ({error})")
                return
            if not line:
                return
            if len(line) > ROW_BYTES:
                yield Fault("too_long", 0, number, f"the line is longer than {ROW_BYTES // 2**20} MiB")
                return
            yield Line(number, line.rstrip("\r\n").encode("utf-8", "surrogatepass"))
