"""Opens a file by its kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from lamina.data.read import arrow, csv, excel, hub, json, parquet, text
from lamina.data.read.find import DataFile, find_files
from lamina.data.read.rows import Fault, RawRow, Row, place_of
from lamina.errors import DataError


class Reader(Protocol):
    """Reads the rows of a file of one kind, in order; the `read` of a module of this package."""

    def __call__(self, file: DataFile) -> Iterator[RawRow | Fault]:
        """Yields each row, or a fault in place of one that cannot be read.

        Raises:
            DataError: Nothing at all can be read of the file.
            StorageError: The system refuses to read it.
        """
        ...


_READERS: dict[str, Reader] = {
    "arrow": arrow.read,
    "csv": csv.read,
    "excel": excel.read,
    "hub": hub.read,
    "json": json.read,
    "parquet": parquet.read,
}


def rows_of(file: DataFile, text_unit: str = "auto") -> Iterator[RawRow | Fault]:
    """Yields the rows of a file, in order, with a fault in place of each unreadable row.

    Args:
        file: The file.
        text_unit: The unit that becomes a document, for a plain text file.

    Raises:
        DataError: The file cannot be read at all.
        StorageError: The operating system refuses to read it.
    """
    if file.kind == "text":
        return text.read(file, text_unit)
    return _READERS[file.kind](file)


def sheets_of(file: DataFile) -> list[str]:
    """Returns the sheet of a workbook that is read, and then the others; nothing if the user named it, or there is only
    one, or the file is no workbook.

    Raises:
        DataError: The file cannot be read at all.
    """
    return excel.sheets_of(file) if file.kind == "excel" else []


def read_rows(path: str, field: str = "data.train") -> list[Row]:
    """Returns all rows of a file, a folder or a glob, for callers that need them at once.

    Args:
        path: The path from the user.
        field: The configuration field or option it was given with.

    Raises:
        ConfigError: There is no such file.
        DataError: It has no rows, or one that cannot be read.
    """
    rows = []
    for file in find_files(path, field):
        for row in rows_of(file):
            if isinstance(row, Fault):
                raise DataError(fault_message(file, row))
            rows.append(row.value)
    if not rows:
        raise DataError(f"{path}: the file has no rows. Fix: give a file with at least one row.")
    return rows


def fault_message(file: DataFile, fault: Fault) -> str:
    """Returns the error message for an unreadable row, where it stops the command."""
    begins = f" It starts with {fault.excerpt!r}." if fault.excerpt else ""
    return (
        f"{file.name}: {place_of(fault)} {fault.message}.{begins} Fix: {fault.fix or 'correct or remove it'}; `lamina "
        f"data check {file.name}` lists every unusable row, and --fix writes a file without them."
    )
