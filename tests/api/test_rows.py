"""Rows in memory: every kind becomes the same file, gaps are left out, and what is no data is named."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lamina.api.rows import rows_in, store_rows
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


def test_gaps_are_left_out_and_scalars_become_plain() -> None:
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
        {"text": "a", "number": 1.5, "when": "2026-01-02T00:00:00", "whole": 3},
        {},
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


def test_letters_of_every_script_stay(tmp_path: Path) -> None:
    rows = [{"text": "naïve – 日本 \U0001f600 \u2028 end"}]
    path = store_rows(rows, tmp_path, "train")
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[0]) == rows[0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "has no rows"),
        (iter(()), "has no rows"),
        (5, "cannot be read from a int"),
        ([1, 2], "row 1: is a int"),
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
