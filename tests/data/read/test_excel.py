"""Excel files: the same rows as the CSV of the sheet; without the extra, an error that names it."""

from __future__ import annotations

import datetime
import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lamina.data.formats._fields import cell
from lamina.data.read import Fault, RawRow, find_files, read_rows, rows_of
from lamina.data.read.excel import _as_text, sheet_notes, sheets_of
from lamina.data.read.formulas import without_values
from lamina.errors import ConfigError, DataError


def save(path: Path, **sheets: list[tuple[Any, ...]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def rows(name: str) -> list[dict[str, Any]]:
    (file,) = find_files(name)
    read = list(rows_of(file))
    assert all(isinstance(row, RawRow) for row in read)
    return [row.value for row in read if isinstance(row, RawRow)]


def test_cells_are_text_as_a_spreadsheet_shows_them(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    table = [
        (),
        ("Question", " Answer ", None),
        ("naïve?", "5 €", None),
        (None, None, None),
        (1, 2.5, None),
        (3.0, True),
        (moment, datetime.date(2026, 1, 2), None),
        ("only one",),
    ]
    path = save(tmp_path / "a.xlsx", Sheet=table)
    assert rows(str(path)) == [
        {"Question": "naïve?", "Answer": "5 €"},
        {"Question": "1", "Answer": "2.5"},
        {"Question": "3", "Answer": "True"},
        {"Question": "2026-01-02 03:04:05", "Answer": "2026-01-02"},
        {"Question": "only one", "Answer": ""},
    ]
    (file,) = find_files(str(path))
    assert [row.line for row in rows_of(file)] == [3, 5, 6, 7, 8]


def test_what_is_no_text_is_written_as_from_other_tables() -> None:
    day = datetime.datetime(2026, 1, 2)
    for value in (day, day.replace(hour=3), day.date(), day.time(), True, False, None, 2.5):
        assert _as_text(value) == cell(value)


def test_the_first_sheet_with_rows_is_read_or_the_one_that_is_named(tmp_path: Path) -> None:
    notes = [(), ("Read me first",), ()]
    path = save(tmp_path / "n.xlsx", Notes=notes, Data=[("a",), ("1",)], More=[("a",), ("2",)])
    assert rows(str(path)) == [{"a": "1"}], "a sheet with a single line has no rows"
    path = save(tmp_path / "b.xlsx", Empty=[], One=[("a",), ("1",)], **{"Two words": [("a",), ("2",)]})
    assert rows(str(path)) == [{"a": "1"}]
    assert rows(f"{path}:Two words") == [{"a": "2"}]
    with pytest.raises(ConfigError, match="has no sheet 'Three'; it has Empty, One, Two words"):
        rows(f"{path}:Three")


def test_cells_beside_the_header_are_a_fault(tmp_path: Path) -> None:
    (file,) = find_files(str(save(tmp_path / "c.xlsx", S=[("a", "b"), (1, 2, 3), (4, 5)])))
    first, second = rows_of(file)
    assert isinstance(first, Fault)
    assert (first.code, first.line) == ("wrong_cells", 2)
    assert isinstance(second, RawRow)


def test_what_is_no_workbook_says_so(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    path = tmp_path / "d.xlsx"
    path.write_bytes(b"PK not really")
    (file,) = find_files(str(path))
    with pytest.raises(DataError, match="is not an Excel workbook"):
        list(rows_of(file))


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    path = tmp_path / "e.xlsx"
    path.write_bytes(b"PK")
    (file,) = find_files(str(path))
    with pytest.raises(ConfigError, match=r"pip install 'lamina\[excel\]'"):
        list(rows_of(file))


def test_other_spreadsheets_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "f.xls"
    path.write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(ConfigError, match=r"old Excel.*save a sheet as CSV or \.xlsx"):
        find_files(str(path))


def test_formulas_that_nobody_computed_are_named(tmp_path: Path) -> None:
    table = [("Question", "Answer"), *[(f"q{line}", f"=A{line}") for line in range(2, 10)], ("q", "a")]
    path = save(tmp_path / "a.xlsx", Notes=[("=1+1",)], Data=table)
    words = (
        r"a.xlsx:Data: formulas without a value in the sheet 'Data': B2, B3, B4, B5, B6, ... \(8 cells\)\..*Fix: open"
    )
    with pytest.raises(DataError, match=words):
        rows(f"{path}:Data")


def sheet(cells: str, properties: str = "") -> bytes:
    """The parts of a workbook that are looked at."""
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as book:
        book.writestr("xl/workbook.xml", f"<workbook {main}>{properties}</workbook>")
        book.writestr("s.xml", f"<worksheet {main}><sheetData><row>{cells}</row></sheetData></worksheet>")
    return content.getvalue()


OPENING = '<calcPr calcId="124519" fullCalcOnLoad="1"/>'


@pytest.mark.parametrize(
    ("cells", "properties", "found"),
    [
        ('<c r="B2"><f>A2</f><v></v></c><c r="C2"><f>A2</f></c>', OPENING, ["B2", "C2"]),  # openpyxl
        ('<c r="B2"><f>A2</f><v>0</v></c><c r="C2"><f>A2</f><v>7</v></c>', OPENING, ["B2"]),  # XlsxWriter
        ('<c r="B2"><f>A2</f><v>0</v></c>', "", []),  # Excel
        ('<c r="B2" t="str"><f>A2</f><v></v></c><c r="C2" t="str"><f>A2</f><v>x</v></c>', "", []),
        ('<c r="B2" t="s"><v>0</v></c><c r="C2"/>', OPENING, []),
    ],
    ids=["openpyxl", "xlsxwriter", "a zero of excel", "texts of excel", "no formula"],
)
def test_which_formulas_have_no_value(cells: str, properties: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(sheet(cells, properties))
    assert without_values(tmp_path / "a.xlsx", "/s.xml") == found


def test_the_list_of_sheets_may_have_another_name(tmp_path: Path) -> None:
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"
    types = 'xmlns="http://schemas.openxmlformats.org/package/2006/content-types"'
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as book:
        part = f'<Override PartName="/xl/workbook2.xml" ContentType="{kind}"/>'
        book.writestr("[Content_Types].xml", f"<Types {types}>{part}</Types>")
        book.writestr("xl/workbook2.xml", f"<workbook {main}>{OPENING}</workbook>")
        cells = '<row><c r="B2"><f>A2</f><v>0</v></c></row>'
        book.writestr("s.xml", f"<worksheet {main}><sheetData>{cells}</sheetData></worksheet>")
    assert without_values(tmp_path / "a.xlsx", "/s.xml") == ["B2"]


def test_hidden_sheets_and_charts_are_passed_over(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = save(tmp_path / "a.xlsx", Old=[("a",), ("old",)], New=[("a",), ("new",)], More=[("a",), ("more",)])
    book = openpyxl.load_workbook(path)
    book["Old"].sheet_state = "hidden"
    book.active = 1
    book.create_chartsheet("Chart", 0).add_chart(openpyxl.chart.BarChart())
    book.save(path)
    assert rows(str(path)) == [{"a": "new"}]
    assert rows(f"{path}:Old") == [{"a": "old"}]
    (file,) = find_files(str(path))
    (note,) = sheet_notes("a.xlsx", sheets_of(file))
    assert note == "a.xlsx: reads the sheet 'New', and not 'Old' (hidden), 'More'; a.xlsx:SHEET reads another"
    (named,) = find_files(f"{path}:Old")
    assert not sheets_of(named)
    with pytest.raises(ConfigError, match="a chart, in the sheet 'Chart'; it has Old, New, More"):
        rows(f"{path}:Chart")


def test_a_cell_merged_over_rows_counts_for_each(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    table = [("part", "q", "a"), ("one", "q1", "a1"), (None, "q2", "a2"), (), (None, "q3", "a3"), ("", "q4", "wide")]
    path = save(tmp_path / "a.xlsx", S=table)
    book = openpyxl.load_workbook(path)
    for merged in ("A2:A4", "C2:C3", "C6:D6", "A7:A9"):
        book["S"].merge_cells(merged)
    book["S"]["A7"] = "nothing beside it"
    book.save(path)
    assert [tuple(row.values()) for row in rows(str(path))] == [
        ("one", "q1", "a1"),
        ("one", "q2", "a1"),
        ("", "q3", "a3"),
        ("", "q4", "wide"),
        ("nothing beside it", "", ""),
    ]


def test_headings_merged_over_rows_are_no_row(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path = save(tmp_path / "a.xlsx", S=[("q\nEN", "a"), (), ("q1", "a1")])
    book = openpyxl.load_workbook(path)
    book["S"].merge_cells("A1:A2")
    book.save(path)
    assert rows(str(path)) == [{"q EN": "q1", "a": "a1"}]


def test_a_title_above_the_headings_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "a.xlsx", S=[("Our FAQ",), ("q", "a"), ("q1", "a1")])
    with pytest.raises(DataError, match=r"line 1 \('Our FAQ'\) was taken as the header.*Fix: if line 1 is a title"):
        read_rows(str(path))
