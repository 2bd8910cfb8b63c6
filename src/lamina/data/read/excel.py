"""Reads `.xlsx`: the rows of one sheet below its header; every cell is text, as in a CSV file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from lamina.data.read.find import DataFile
from lamina.data.read.formulas import shown, without_values
from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import is_missing_word, remarks_on
from lamina.data.read.table import checked_header
from lamina.data.read.times import TIMES, time_text
from lamina.errors import ConfigError, DataError, Problem


def read(file: DataFile) -> Iterator[RawRow | Fault]:
    """Yields the rows of a sheet, without empty ones. A row's line is its number in the sheet.

    Raises:
        ConfigError: The package openpyxl is not installed, or there is no such sheet.
        DataError: The file is not a workbook, a sheet does not start with a header, or it has formulas whose values are
            not in the file.
    """
    book = _open(file)
    try:
        sheet = _sheet(book, file)
        _check_formulas(sheet, file)
        yield from _rows(sheet, file)
    finally:
        book.close()


def _open(file: DataFile) -> Any:
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        message = f"{file.name} is an Excel file, for which the package openpyxl is needed, which is not installed"
        fix = "pip install 'lamina[excel]', or save the sheet as CSV UTF-8"
        raise ConfigError(Problem("data", message, fix)) from None
    try:
        return openpyxl.load_workbook(str(file.path), read_only=True, data_only=True)
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise DataError(f"{file.name}: is not an Excel workbook ({error}). Fix: save it again as .xlsx.") from None


def _sheet(book: Any, file: DataFile) -> Any:
    names = list(book.sheetnames)
    if not file.split:
        # One of notes may stand before that of the data: it has a line of its own, and no row below it.
        return max((book[name] for name in names), key=lambda sheet: _filled_rows(sheet, most=2))
    if file.split not in names:
        message = f"{file.path} has no sheet {file.split!r}; it has {', '.join(names)}"
        raise ConfigError(Problem("data", message, f"name one, such as {file.path}:{names[0]}"))
    return book[file.split]


def _check_formulas(sheet: Any, file: DataFile) -> None:
    assert file.path is not None
    if cells := without_values(file.path, sheet._worksheet_path):
        raise DataError(
            f"{file.name}: formulas without a value in the sheet {sheet.title!r}: {shown(cells)}. A program wrote "
            "them, and no spreadsheet has computed them since. Fix: open the file in Excel or LibreOffice and save it, "
            "or write values in place of formulas."
        )


def _filled_rows(sheet: Any, most: int) -> int:
    """Counts rows that are not empty, up to a number."""
    filled = (row for row in sheet.iter_rows(values_only=True) if any(cell is not None for cell in row))
    return sum(1 for _ in islice(filled, most))


def _rows(sheet: Any, file: DataFile) -> Iterator[RawRow | Fault]:
    header: list[str] | None = None
    number = 0
    for line, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells = [_as_text(value) for value in values]
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = checked_header(cells, file.name)
            continue
        number += 1
        yield _row(cells, header, number, line)


def _row(cells: Sequence[str], header: Sequence[str], number: int, line: int) -> RawRow | Fault:
    extra = [cell for cell in cells[len(header) :] if cell]
    if extra:
        message = f"has cells to the right of the header's {len(header)} columns"
        return Fault("wrong_cells", number, line, message, extra[0])
    remarks = remarks_on("\n".join(cells))
    if any(map(is_missing_word, cells)):
        remarks.append("missing_value_word")
    padded = [*cells, *[""] * (len(header) - len(cells))]
    return RawRow(number, line, dict(zip(header, padded, strict=False)), tuple(remarks))


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, TIMES):
        return time_text(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
