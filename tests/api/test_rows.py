"""Rows in memory: every kind becomes the same file, gaps are empty cells, and what is no data is named."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lamina.api.rows import rows_in, store_rows
from lamina.config import SourceConfig
from lamina.data.example import Example
from lamina.data.read import find_files
from lamina.data.source import SourceReader
from lamina.errors import DataError

ROWS = [{"prompt": f"p{n}", "completion": f"c{n}", "score": n} for n in range(3)]


def _pandas(rows: list[dict[str, Any]]) -> object:
    return pytest.importorskip("pandas").DataFrame(rows)


def _polars(rows: list[dict[str, Any]]) -> object:
    return pytest.importorskip("polars").DataFrame(rows)


def _arrow(rows: list[dict[str, Any]]) -> object:
    return pytest.importorskip("pyarrow").Table.from_pylist(rows)


def _dataset(rows: list[dict[str, Any]]) -> object:
    return pytest.importorskip("datasets").Dataset.from_list(rows)


class _Indexed:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._rows[place]


KINDS: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "columns": lambda rows: {key: [row[key] for row in rows] for key in rows[0]},
    "indexed": _Indexed,
    "pandas": _pandas,
    "polars": _polars,
    "arrow": _arrow,
    "dataset": _dataset,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_file(kind: str, tmp_path: Path) -> None:
    path = store_rows(KINDS[kind](ROWS), tmp_path, "train")
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    assert path == store_rows(ROWS, tmp_path, "train"), "the name is that of the content"
    assert path != store_rows(ROWS[:2], tmp_path, "train")


def test_texts_are_rows() -> None:
    assert list(rows_in(["a", "b"], "train")) == [{"text": "a"}, {"text": "b"}]


def test_gaps_are_nulls_and_scalars_become_plain() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "text": ["a", None],
            "number": [1.5, float("nan")],
            "when": [pandas.Timestamp("2026-01-02"), pandas.NaT],
            "whole": pandas.array([3, None], dtype="Int64"),
        }
    )
    assert list(rows_in(frame, "train")) == [
        {"text": "a", "number": 1.5, "when": "2026-01-02", "whole": 3},
        {"text": None, "number": None, "when": None, "whole": None},
    ]
    odd = {
        "a": np.int64(3),
        "b": np.array([[1, 2]]),
        "c": torch.tensor(2),
        "d": datetime.date(2026, 1, 2),
        "e": {1: (2,)},
    }
    assert list(rows_in([odd], "train")) == [
        {"a": 3, "b": [[1, 2]], "c": 2, "d": "2026-01-02", "e": {"1": [2]}},
    ]


# One column is numbers, and each has a gap.
TABLES: dict[str, tuple[str, dict[str, list[Any]]]] = {
    "prompt and completion": ("auto", {"prompt": ["a", "b", "c", None], "completion": [1, 2.5, None, 3]}),
    "usual names": ("auto", {"Frage": [1, 2, 3], "Antwort": ["x", None, "z"]}),
    "instructions": ("auto", {"instruction": [1, 2, 3], "input": ["x", None, 7], "output": [5, None, 1e-7]}),
    "texts": ("auto", {"id": [1, 2, 3], "text": ["a", None, 3]}),
    "preferences": ("auto", {"prompt": ["a", "b", "c"], "chosen": [1, 2, 3], "rejected": [4, 5, None]}),
    "labelled answers": ("auto", {"prompt": [1, 2, 3], "completion": [3, None, 5], "label": [1, 0, 1]}),
    "classes": ("classification", {"text": ["a", None, 3], "label": [2, 0, 1]}),
    "classes of prompts": ("classification", {"prompt": [1, None, 3], "label": ["x", "y", "z"]}),
    "flags": ("auto", {"prompt": ["a", "b", "c"], "completion": [True, False, None], "system": [None, "s", 4]}),
}


def _examples(path: Path, form: str, columns: dict[str, str] | None = None) -> list[tuple[Example | None, str, str]]:
    source = SourceConfig(path=str(path), format=form, columns=columns or {})
    (file,) = find_files(str(path), "data.train")
    return [(row.example, row.drop_reason, row.misfit) for row in SourceReader(file, source)]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_as_its_csv(name: str, tmp_path: Path) -> None:
    """Numbers are their plain text, and gaps are empty cells: what a CSV trains on, the table in memory does."""
    pandas = pytest.importorskip("pandas")
    form, columns = TABLES[name]
    # Without a dtype of its own, a column keeps whole numbers whole beside a gap.
    frame = pandas.DataFrame({column: pandas.Series(values, dtype=object) for column, values in columns.items()})
    frame.to_csv(tmp_path / "table.csv", index=False)
    expected = _examples(tmp_path / "table.csv", form)
    assert any(drop for _, drop, _ in expected)
    assert not any(misfit for _, _, misfit in expected)
    for data in (frame, frame.to_dict("records")):
        assert _examples(store_rows(data, tmp_path, "train"), form) == expected


@pytest.mark.parametrize(
    "value", [datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2, 10), decimal.Decimal("1.50")], ids=repr
)
def test_dates_and_decimals_of_a_table_are_text_as_in_memory(value: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": value}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table.parquet")
    found = _examples(tmp_path / "table.parquet", "auto")
    assert found == _examples(store_rows(rows, tmp_path, "train"), "auto")
    assert found[0][0] is not None and not found[0][2]


def test_moments_are_the_same_text_from_every_kind_of_table(tmp_path: Path) -> None:
    """As pandas and spreadsheets write them; so are they in a template, and of numpy, which counts nanoseconds."""
    pandas = pytest.importorskip("pandas")
    moments = pandas.to_datetime(["2026-01-01 12:30:00", "2026-01-02 00:00:01", None])
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "when": moments, "day": moments.normalize()})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_feather(tmp_path / "a.feather")
    stored = [
        store_rows(each, tmp_path / name, "train")
        for name, each in {
            "frame": frame,
            "records": frame.to_dict("records"),
            "columns": {name: frame[name].to_numpy() for name in frame},
            "nanoseconds": {name: frame[name].to_numpy() for name in frame}
            | {name: frame[name].to_numpy().astype("datetime64[ns]") for name in ("when", "day")},
            "dataset": datasets.Dataset.from_pandas(frame),
        }.items()
    ]
    columns = {"prompt": "{{ text }} at {{ when }}", "completion": "day"}
    expected = _examples(tmp_path / "a.csv", "auto", columns)
    assert expected[0][0] is not None
    assert [turn.content for turn in expected[0][0].messages] == ["a at 2026-01-01 12:30:00", "2026-01-01"]
    for path in (tmp_path / "a.parquet", tmp_path / "a.feather", *stored):
        assert _examples(path, "auto", columns) == expected, path
    assert len({path.name for path in stored}) == 1  # the digest is in the name


def test_a_cell_may_be_a_series_of_moments_in_a_time_zone(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    moments = pandas.Series(pandas.to_datetime(["2026-01-02 03:04:05"], utc=True))
    path = store_rows([{"text": "a", "when": moments}], tmp_path, "train")
    assert json.loads(path.read_text())["when"] == ["2026-01-02 03:04:05+00:00"]


def test_gaps_in_columns_of_a_template_are_empty_text(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": None}, {"a": "y", "b": 2}]
    columns = {"prompt": "{{ a }}{{ b | trim }}{% if b is not none %}!{% endif %}", "completion": "a"}
    found = _examples(store_rows(rows, tmp_path, "train"), "auto", columns)
    assert [example.messages[0].content for example, _, _ in found if example] == ["x", "y2!"]


def test_letters_of_every_script_stay(tmp_path: Path) -> None:
    rows = [{"text": "naïve – 日本 \U0001f600 \u2028 end"}]
    path = store_rows(rows, tmp_path, "train")
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[0]) == rows[0]


def test_an_index_with_a_name_is_a_column() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS).set_index("prompt")
    assert [row["prompt"] for row in rows_in(frame, "train")] == ["p0", "p1", "p2"]
    grouped = pandas.DataFrame(ROWS).groupby(["prompt", "score"])[["completion"]].first()
    assert list(rows_in(grouped, "train")) == ROWS
    kept = pandas.DataFrame(ROWS, index=pandas.Index([7, 8, 9], name="prompt"))
    assert list(rows_in(kept, "train")) == ROWS, "a column goes before an index of its name"


def test_columns_of_one_name_are_an_error() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["q", "a", "b"]], columns=["prompt", "completion", "prompt"])
    with pytest.raises(DataError, match="several columns with the name 'prompt'"):
        list(rows_in(frame, "train"))


@pytest.mark.parametrize("kind", ["dataset", "arrow", "polars"])
def test_calls_have_no_arguments_of_other_calls(kind: str) -> None:
    """A table gives all calls of a column the arguments of each of them, as nulls."""
    calls = [{"function": {"name": name, "arguments": {argument: 1}}} for name, argument in (("f", "a"), ("g", "b"))]
    rows = [{"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]} for call in calls]
    found = [row["messages"][0]["tool_calls"] for row in rows_in(KINDS[kind](rows), "train")]
    assert found == [[call] for call in calls]


@pytest.mark.parametrize("form", ["pandas", "arrow", "numpy", "torch"])
def test_datasets_of_any_format(form: str) -> None:
    datasets = pytest.importorskip("datasets")
    assert list(rows_in(datasets.Dataset.from_list(ROWS).with_format(form), "train")) == ROWS


def test_transforms_of_datasets_are_applied() -> None:
    datasets = pytest.importorskip("datasets")
    loud = datasets.Dataset.from_list(ROWS).with_transform(lambda rows: {"text": [t.upper() for t in rows["prompt"]]})
    assert list(rows_in(loud, "train")) == [{"text": "P0"}, {"text": "P1"}, {"text": "P2"}]


def test_columns_may_be_arrays_or_series() -> None:
    pandas = pytest.importorskip("pandas")
    for made in (np.array, pandas.Series, torch.tensor):
        assert list(rows_in({"n": made([1, 2]), "text": ["a", "b"]}, "t")) == [
            {"n": 1, "text": "a"},
            {"n": 2, "text": "b"},
        ]


def test_lists_of_messages_are_conversations() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert list(rows_in([turns, tuple(turns)], "train")) == [{"messages": turns}] * 2


def test_columns_that_nobody_reads_stop_nothing() -> None:
    given = {"id": uuid.UUID(int=1), "took": datetime.timedelta(seconds=61), "kind": Kind.FIRST}
    assert list(rows_in([given], "t")) == [{"id": str(uuid.UUID(int=1)), "took": "0:01:01", "kind": "first"}]


class Kind(enum.Enum):
    FIRST = "first"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "has no rows"),
        (iter(()), "has no rows"),
        (5, "cannot be read from a int"),
        ([1, 2], "row 1: is a int"),
        ([("q", "a")], "row 1: is a tuple, .* Fix: make it a dictionary"),
        ([{"image": object()}], "row 1: the column 'image' has a object"),
        ([{"a": 1}, {"b": {"c": b"x"}}], "row 2: the column 'b.c' has a bytes"),
    ],
)
def test_what_is_no_data_is_named(data: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        store_rows(data, tmp_path, "train")
    assert not list(tmp_path.iterdir())


def test_formatting(tmp_path: Path) -> None:
    def made(function: Callable[[dict[str, Any]], Any]) -> Any:
        return json.loads(store_rows(ROWS[:1], tmp_path, "train", function).read_text())

    assert made(lambda row: row["prompt"].upper()) == {"text": "P0"}
    turns = [{"role": "user", "content": "p0"}, {"role": "assistant", "content": "c0"}]
    assert made(lambda row: turns) == {"messages": turns}
    assert made(lambda row: {"prompt": row["score"]}) == {"prompt": 0}
    with pytest.raises(DataError, match="train, row 1: formatting_func returned a list"):
        made(lambda row: ["a", "b"])


def test_a_formatting_function_that_fails_names_the_row(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"train, row 2: formatting_func fails with KeyError: 'b'.*columns are 'a'"
    ) as found:
        store_rows([{"a": 1, "b": 2}, {"a": 1, "b": None}], tmp_path, "train", lambda row: f"{row['b']}")
    assert isinstance(found.value.__cause__, KeyError)  # a gap is not among the columns: it would be written "None"


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "arrow"])
def test_numbers_of_classes_become_their_names(kind: str | None) -> None:
    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=names)
    assert [row["label"] for row in rows_in(data.with_format(kind), "train")] == ["pos", "neg", None]


def test_two_columns_of_one_name_are_an_error_in_an_arrow_table() -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])
    with pytest.raises(DataError, match="train: has several columns with the name 'text'"):
        list(rows_in(table, "train"))
