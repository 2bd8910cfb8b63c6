"""CSV headers: headings with line breaks, and titles above them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamina.data.read import Fault, RawRow, find_files, read_rows, rows_of
from lamina.errors import DataError


def read(tmp_path: Path, content: str, name: str = "rows.csv") -> list[RawRow | Fault]:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8"))
    (file,) = find_files(str(path))
    return list(rows_of(file))


@pytest.mark.parametrize(
    ("content", "columns", "line"),
    [
        ('question,"answer\n(short)"\r\na,b\r\n', ["question", "answer (short)"], 3),
        ('"Question\r\n(English)","Answer\n\n(English)"\r\na,b\r\n', ["Question (English)", "Answer (English)"], 5),
        ('sep=;\n"Question\n, all";Answer\na;b\n', ["Question , all", "Answer"], 4),
        ('"a ""quoted""\nword"\tb\na\tb\n', ['a "quoted" word', "b"], 3),
    ],
)
def test_a_heading_may_have_line_breaks(tmp_path: Path, content: str, columns: list[str], line: int) -> None:
    (row,) = read(tmp_path, content)
    assert isinstance(row, RawRow)
    assert (row.number, row.line, row.value) == (1, line, dict(zip(columns, "ab", strict=True)))


def test_a_single_column_may_have_one(tmp_path: Path) -> None:
    rows = read(tmp_path, '"Text\n(customer mail)"\n"one\ntwo"\n"three"\n')
    assert [(row.number, row.line, row.value) for row in rows if isinstance(row, RawRow)] == [
        (1, 3, {"Text (customer mail)": "one\ntwo"}),
        (2, 5, {"Text (customer mail)": "three"}),
    ]


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ('question,5" disk\na,b\n', ["question", '5" disk']),  # no quoted cell
        ('question,"answer\na,b\n', ["question", "answer"]),  # never closed
        ('question,"answer\na,"b"\n', ["question", "answer"]),  # closed by the quote of another cell
    ],
)
def test_a_quote_that_is_not_closed_takes_no_rows(tmp_path: Path, content: str, columns: list[str]) -> None:
    (row,) = read(tmp_path, content)
    assert isinstance(row, RawRow)
    assert (list(row.value), row.line) == (columns, 2)


def test_a_title_above_the_headings_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Our FAQ\nquestion,answer\na,b\n")
    expected = r"line 1 \('Our FAQ'\) was taken as the header.*Fix: if line 1 is a title .*, delete that line"
    with pytest.raises(DataError, match=expected):
        read_rows(str(path))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert read_rows(str(path)) == [{"question": "a", "answer": "b"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8"])
def test_a_table_under_the_name_of_a_text_says_its_right_name(tmp_path: Path, encoding: str) -> None:
    """Excel saves Unicode Text as `.txt`; saved as UTF-8 instead, it is no text either."""
    path = tmp_path / "faq.txt"
    path.write_bytes("question\tanswer\r\na\tb\r\n".encode(encoding))
    with pytest.raises(DataError, match=r"Fix: .*rename it to faq\.tsv"):
        read_rows(str(path))
    assert read_rows(str(path.rename(tmp_path / "faq.tsv"))) == [{"question": "a", "answer": "b"}]


def test_a_text_with_tabs_is_read_by_lines_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\tb\nc\td\n")
    (file,) = find_files(str(tmp_path / "a.txt"))
    assert [row.value for row in rows_of(file, "line") if isinstance(row, RawRow)] == [
        {"text": "a\tb"},
        {"text": "c\td"},
    ]
    (tmp_path / "a.txt").write_text("a\tb\nplain\n")
    assert len(list(rows_of(file))) == 1
