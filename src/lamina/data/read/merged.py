"""Cells of an `.xlsx` sheet that are merged over several rows: the file has their value in the topmost alone."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

_RANGE = re.compile(rb"""<(?:\w+:)?mergeCell\s[^>]*?ref=["']([A-Z]+)(\d+):[A-Z]+(\d+)["']""")
_BEGIN = b"mergeCells"
_CHUNK = 2**18


def merged_downwards(path: Path, part: str) -> dict[int, list[tuple[int, int]]]:
    """Returns what is merged over several rows: line -> column, from 0, and last line of each such cell.

    Of a cell that is merged over several columns too, the column is the first, in which a spreadsheet has its value.

    Args:
        path: The workbook.
        part: The sheet's file in it, such as `xl/worksheets/sheet1.xml`.
    """
    found: dict[int, list[tuple[int, int]]] = {}
    for letters, first, last in _RANGE.findall(_end_of(path, part)):
        if first != last:
            found.setdefault(int(first), []).append((_column(letters), int(last)))
    return found


def _end_of(path: Path, part: str) -> bytes:
    """Returns the end of a sheet's file from the list of merged cells, which follows its cells; empty without one."""
    with zipfile.ZipFile(path) as book, book.open(part.lstrip("/")) as source:
        kept = b""
        while chunk := source.read(_CHUNK):
            kept += chunk
            at = kept.find(_BEGIN)
            if at >= 0:
                return kept[at:] + source.read()
            kept = kept[-len(_BEGIN) :]
    return b""


def _column(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = 26 * number + letter - ord("A") + 1
    return number - 1
