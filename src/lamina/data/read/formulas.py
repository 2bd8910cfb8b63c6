"""Formulas of an `.xlsx` sheet whose values are not in the file: a program wrote it, and nothing computed it since.

Libraries leave such a value empty (openpyxl), or write 0 and ask for a computation on opening (XlsxWriter, which pandas
takes if it is there). Both would be read as data.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

_SHEETS = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_USUAL = "xl/workbook.xml"
_SHOWN = 5


def without_values(path: Path, part: str) -> list[str]:
    """Returns the cells of a sheet, such as `B2`, whose formula has no computed value in the file.

    Args:
        path: The workbook.
        part: The sheet's file in it, such as `xl/worksheets/sheet1.xml`.
    """
    with zipfile.ZipFile(path) as book:
        return list(_without_values(book, part.lstrip("/"), _computes_on_opening(book)))


def shown(cells: list[str]) -> str:
    """Returns the first cells, and how many there are in all if these are not all."""
    first = ", ".join(cells[:_SHOWN])
    return first if len(cells) <= _SHOWN else f"{first}, ... ({len(cells):,} cells)"


def _without_values(book: zipfile.ZipFile, part: str, not_computed: bool) -> Iterator[str]:
    with book.open(part) as source:
        for _, element in ElementTree.iterparse(source):
            if element.tag == f"{_SHEETS}row":
                for cell in element.iter(f"{_SHEETS}c"):
                    if _lacks_value(cell, not_computed):
                        yield cell.get("r", "?")
                element.clear()


def _lacks_value(cell: ElementTree.Element, not_computed: bool) -> bool:
    if cell.find(f"{_SHEETS}f") is None:
        return False
    value = cell.findtext(f"{_SHEETS}v")
    if not value:  # Excel stores an empty text as a value of the type `str`
        return cell.get("t") != "str" or value is None
    return not_computed and value == "0"


def _computes_on_opening(book: zipfile.ZipFile) -> bool:
    """Whether the file asks for its formulas to be computed when it is opened; Excel saves it without that."""
    properties = ElementTree.fromstring(book.read(_workbook(book))).find(f"{_SHEETS}calcPr")
    return properties is not None and properties.get("fullCalcOnLoad") in ("1", "true")


def _workbook(book: zipfile.ZipFile) -> str:
    """The part that lists the sheets, which Excel on the web calls `xl/workbook2.xml` at times."""
    if _USUAL in book.namelist():
        return _USUAL
    parts = ElementTree.fromstring(book.read("[Content_Types].xml"))
    named = (part.get("PartName", "") for part in parts if part.get("ContentType", "").endswith(".main+xml"))
    return next(named).lstrip("/")
