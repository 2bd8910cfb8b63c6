"""Reads `.xlsx`: the rows of one sheet below its header; every cell is text, as in a CSV file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from lamina.data.read.find import DataFile
from lamina.data.read.formulas import shown, without_values
from lamina.data.read.merged import merged_downwards
from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import is_missing_word, remarks_on
from lamina.data.read.table import checked_header, perhaps_a_title
from lamina.data.read.times import TIMES, time_text
from lamina.errors import ConfigError, DataError, Problem


def read(file: DataFile) -> Iterator[RawRow | Fault]:
    """Yields the rows of a sheet, without empty ones. A row's line is its number in the sheet.

    Raises:
        ConfigError: The package openpyxl is not installed, or there is no such sheet.
        DataError: The file is not a workbook, a sheet does not start with a header, or it has formulas whose values are
            not in the file.
    """
    assert file.path is not None
    book = _open(file)
    try:
        sheet = _sheet(book, file)
        _check_formulas(sheet, file)
        yield from _rows(sheet, file, merged_downwards(file.path, sheet._worksheet_path))
    finally:
        book.close()


def sheets_of(file: DataFile) -> list[str]:
    """Returns the sheet that is read where the user named none, and then the others with cells, if there are any.

    Raises:
        ConfigError, DataError: As for `read`.
    """
    if file.split:
        return []
    book = _open(file)
    try:
        if len(_tables(book)) < 2:
            return []
        read = _sheet(book, file).title
        others = [sheet for name, sheet in _tables(book).items() if name != read]
        return [read, *(f"{sheet.title!r}{' (hidden)' if _is_hidden(sheet) else ''}" for sheet in others)]
    finally:
        book.close()


def sheet_notes(name: str, sheets: Sequence[str]) -> list[str]:
    """Returns a message to the user about which of several sheets is read, as `sheets_of` returned them."""
    if not sheets:
        return []
    read, *others = sheets
    return [f"{name}: reads the sheet {read!r}, and not {', '.join(others)}; {name}:SHEET reads another"]


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
    tables = _tables(book)
    if not tables:
        raise DataError(f"{file.name}: has no sheet with cells, only charts. Fix: name the workbook that has the rows.")
    if not file.split:
        # One of notes may stand before that of the data: it has a line of its own, and no row below it.
        visible = [sheet for sheet in tables.values() if not _is_hidden(sheet)]
        return max(visible or tables.values(), key=lambda sheet: _filled_rows(sheet, most=2))
    if file.split not in tables:
        what = "no rows, but a chart, in the sheet" if file.split in book.sheetnames else "no sheet"
        message = f"{file.path} has {what} {file.split!r}; it has {', '.join(tables)}"
        raise ConfigError(Problem("data", message, f"name one, such as {file.path}:{next(iter(tables))}"))
    return tables[file.split]


def _tables(book: Any) -> dict[str, Any]:
    """Returns the sheets that have cells, and not only a chart."""
    return {sheet.title: sheet for sheet in book.worksheets}


def _is_hidden(sheet: Any) -> bool:
    return sheet.sheet_state != "visible"


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


def _rows(sheet: Any, file: DataFile, merged: Mapping[int, Sequence[tuple[int, int]]]) -> Iterator[RawRow | Fault]:
    header: list[str] | None = None
    number, top = 0, 0
    below: dict[int, tuple[str, int]] = {}  # column -> what is merged into its cells, and the last line of that
    for line, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        cells = [_as_text(value) for value in values]
        is_empty = not any(cell.strip() for cell in cells)
        if header is None:
            if not is_empty:
                header, top = checked_header(cells, file.name), line
            continue
        cells += [""] * (len(header) - len(cells))
        for column, (text, last) in below.items():
            if line <= last and column < len(header) and not cells[column]:
                cells[column] = text
        below |= {column: (cells[column], last) for column, last in merged.get(line, ()) if column < len(cells)}
        if is_empty:
            continue
        number += 1
        row = _row(cells, header, number, line)
        yield perhaps_a_title(row, header, top) if number == 1 else row


def _row(cells: Sequence[str], header: Sequence[str], number: int, line: int) -> RawRow | Fault:
    extra = [cell for cell in cells[len(header) :] if cell]
    if extra:
        message = f"has cells to the right of the header's {len(header)} columns"
        return Fault("wrong_cells", number, line, message, extra[0])
    remarks = remarks_on("\n".join(cells))
    if any(map(is_missing_word, cells)):
        remarks.append("missing_value_word")
    return RawRow(number, line, dict(zip(header, cells, strict=False)), tuple(remarks))


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, TIMES):
        return time_text(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
