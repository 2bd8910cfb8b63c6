"""`read_rows`: what can be read, and that every error names file and row."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from lamina.data.read import Fault, RawRow, find_files, read_rows, rows_of
from lamina.data.read.columns import with_classes
from lamina.errors import ConfigError, DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "ä\u2028 ö", "completion": "日本 😀"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(tmp_path: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.rstrip("\n"),
        LINES.replace("\n", "\r\n"),
        "\n \n" + LINES.replace("\n", "\n\n\t\n"),
        json.dumps(ROWS),
        "\n  " + json.dumps(ROWS, indent=2) + "\n",
    ],
    ids=["lines", "no last newline", "crlf", "blank lines", "array", "indented array"],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_json_lines_and_arrays_whatever_the_name(tmp_path: Path, content: str, name: str) -> None:
    assert read_rows(str(write(tmp_path, content, name))) == ROWS


@pytest.mark.parametrize("content", [LINES, json.dumps(ROWS)], ids=["lines", "array"])
def test_byte_order_mark_is_skipped(tmp_path: Path, content: str) -> None:
    assert read_rows(str(write(tmp_path, b"\xef\xbb\xbf" + content.encode()))) == ROWS


@pytest.mark.parametrize("content", ["", "\n  \n", "[]", "\ufeff"])
def test_file_without_rows(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match="has no rows") as caught:
        read_rows(str(path))
    assert str(path) in str(caught.value)


def test_row_17_that_is_not_json_is_named_with_its_line(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": str(i), "completion": "x"}) for i in range(20)]
    lines[16] = '{"prompt": "oops, "completion": "x"}'
    lines.insert(5, "")
    path = write(tmp_path, "\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: row 17 (line 18) is not JSON")
    assert '{"prompt": "oops' in message


def test_array_that_is_not_json_names_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, '[\n {"a": 1},\n {"a": }\n]')
    with pytest.raises(DataError, match="line 3, column 8") as caught:
        read_rows(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "row", "kind"),
    [
        ('{"a": 1}\n\n[1]\n', 2, "list"),
        ('{"a": 1}\n"text"\n', 2, "str"),
        ("null\n", 1, "NoneType"),
        ('[{"a": 1}, {"a": 2}, 3]', 3, "int"),
    ],
)
def test_row_that_is_no_object(tmp_path: Path, content: str, row: int, kind: str) -> None:
    with pytest.raises(DataError, match=rf"row {row} \(line \d\) is a {kind}, not an object"):
        read_rows(str(write(tmp_path, content)))


def test_bytes_that_are_not_utf8_are_placed(tmp_path: Path) -> None:
    path = write(tmp_path, b'{"a": "z\xfcrich"}\n')
    with pytest.raises(DataError, match="not UTF-8, at byte 8") as caught:
        read_rows(str(path))
    assert str(path) in str(caught.value)


def test_number_beyond_pythons_limit_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 \(line 1\)"):
        read_rows(str(write(tmp_path, '{"a": ' + "1" * 5000 + "}")))


@pytest.mark.parametrize(
    "content",
    ['[{"a": ' + "1" * 5000 + "}]", "[" * 100_000, '{"a": ' + "[" * 100_000],
    ids=["huge number in an array", "deep array", "deep line"],
)
def test_json_that_python_cannot_build_names_the_file(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_rows(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("field", ["data.train", "data.eval", "--data"])
def test_missing_file_and_folder_are_config_errors_of_the_field(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError) as missing:
        read_rows(str(tmp_path / "nope.jsonl"), field)
    assert [problem.field for problem in missing.value.problems] == [field]
    assert f"{tmp_path / 'nope.jsonl'} does not exist" in str(missing.value)
    with pytest.raises(ConfigError, match="is a folder without data files") as folder:
        read_rows(str(tmp_path), field)
    assert [problem.field for problem in folder.value.problems] == [field]


@pytest.mark.parametrize("place", ["", "*.jsonl"])
def test_a_link_that_leads_nowhere_is_not_passed_over(tmp_path: Path, place: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(ConfigError, match=r"b\.jsonl is a link that leads nowhere"):
        find_files(str(tmp_path / place))


def test_tables_put_no_nulls_into_tools_and_calls(tmp_path: Path) -> None:
    """Each row calls a different function, and the columns' structs have the fields of both."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "go"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": n, "arguments": given}}]},
            ],
            "tools": [{"name": n, "parameters": {"properties": {key: {"type": "string"} for key in given}}}],
        }
        for n, given in (("weather", {"city": "Paris"}), ("mail", {"to": "Ann", "subject": "Hi"}))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tools.parquet")
    read = read_rows(str(tmp_path / "tools.parquet"))
    assert [row["tools"] for row in read] == [row["tools"] for row in rows]
    calls = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in read]
    assert calls == [{"city": "Paris"}, {"to": "Ann", "subject": "Hi"}]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_columns_of_json_are_read_as_what_they_hold(tmp_path: Path, ending: str) -> None:
    """`datasets` writes values that do not fit a table, such as turns of which some have calls, with Arrow's JSON
    type."""
    call = {"type": "function", "function": {"name": "wait", "arguments": {"seconds": 600, "until": None}}}
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "tool_calls": [call]}, {"role": "tool"}]
    rows = [{"messages": turns, "source": {"name": "a", "facts": {"n": 1}}}, {"messages": turns[:1], "source": None}]
    as_json = lambda values: pa.array([json.dumps(value) for value in values], pa.string()).cast(pa.json_())  # noqa: E731
    sources = pa.StructArray.from_arrays(
        [pa.array(["a", None]), as_json([{"n": 1}, None])], ["name", "facts"], mask=pa.array([False, True])
    )
    messages = pa.ListArray.from_arrays([0, 3, 4], as_json([*turns, turns[0]]))
    table = pa.table({"messages": messages, "source": sources})
    path = tmp_path / f"rows.{ending}"
    pq.write_table(table, path) if ending == "parquet" else feather.write_feather(table, path)
    assert read_rows(str(path)) == rows


def test_what_is_called_json_and_is_not_is_a_fault_of_its_row(tmp_path: Path) -> None:
    texts = pa.array(['"a"', "{broken", '"c"', None]).cast(pa.json_())
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    (file,) = find_files(str(tmp_path / "rows.parquet"))
    found = list(rows_of(file))
    assert [row.value["text"] if isinstance(row, RawRow) else row.code for row in found] == ["a", "not_json", "c", None]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_bracket_too_many_hides_no_elements(tmp_path: Path, indent: int | None) -> None:
    rows = [{"prompt": f"p{number}", "completion": "c"} for number in range(6)]
    text = json.dumps(rows, indent=indent)
    at = text.index("{", text.index("p2"))
    (file,) = find_files(str(write(tmp_path, f"{text[:at]}[{text[at:]}", "rows.json")))
    read = list(rows_of(file))
    faults = [row for row in read if isinstance(row, Fault)]
    assert [fault.code for fault in faults] == ["not_an_object"]
    good = [row.value for row in read if isinstance(row, RawRow)]
    assert good == [row for row in rows if row["prompt"] != "p3"]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_two_columns_of_one_name_are_an_error_as_in_csv(tmp_path: Path, ending: str) -> None:
    table = pa.Table.from_arrays(
        [pa.array(["q"]), pa.array(["a"]), pa.array(["b"])], ["prompt", "completion", "completion"]
    )
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    with pytest.raises(DataError, match=r"several columns with the name 'completion'\. Fix: rename or drop"):
        read_rows(str(path))


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_numbers_of_classes_are_read_by_their_names(tmp_path: Path, ending: str) -> None:
    """`datasets` writes the names of a `ClassLabel` into the table's metadata."""
    label = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    about = {"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "label": label}}}
    table = pa.table({"text": ["a", "b", "c", "d"], "label": [0, 1, -1, None]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path = tmp_path / f"rows.{ending}"
    pq.write_table(table, path) if ending == "parquet" else feather.write_feather(table, path)
    assert [row["label"] for row in read_rows(str(path))] == ["neg", "pos", None, None]


def test_a_label_of_an_answer_stays_a_number() -> None:
    """It says whether the answer is desirable; beside a text alone, it is a class."""
    names = {"label": ["bad", "good"]}
    assert with_classes({"prompt": "q", "completion": "a", "label": 1}, names)["label"] == 1
    assert with_classes({"text": "q", "label": 1}, names)["label"] == "good"
