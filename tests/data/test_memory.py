"""Rows in memory: what is read back is what was given, and the file is only written when it changes."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamina.data.memory import source_of_rows
from lamina.data.read import read_rows
from lamina.errors import DataError


def test_rows_are_read_back(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"prompt": "naïve 日本", "completion": "a\n\u2028b", "n": np.int64(3), "x": np.float32(0.5)},
        {"messages": [{"role": "user", "content": "q"}], "ids": np.arange(3), "nan": float("nan"), "none": None},
        {"day": datetime.date(2026, 1, 2), "pair": ("a", 1), "nested": {"a": {"b": [1.5]}}},
    ]
    source = source_of_rows(given, "train", tmp_path / "data")
    assert read_rows(source.path) == [
        {"prompt": "naïve 日本", "completion": "a\n\u2028b", "n": 3, "x": 0.5},
        {"messages": [{"role": "user", "content": "q"}], "ids": [0, 1, 2], "nan": None, "none": None},
        {"day": "2026-01-02", "pair": ["a", 1], "nested": {"a": {"b": [1.5]}}},
    ]


def test_an_unchanged_file_is_left_alone(tmp_path: Path) -> None:
    rows = [{"text": "a"}]
    path = Path(source_of_rows(iter(rows), "train", tmp_path).path)
    before = path.stat().st_mtime_ns, path.stat().st_ino
    source_of_rows(rows, "train", tmp_path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    source_of_rows([{"text": "b"}], "train", tmp_path)
    assert read_rows(str(path)) == [{"text": "b"}]


@pytest.mark.parametrize(
    ("rows", "message"), [([], "no rows"), (["a"], "row 1 is str"), ([{"a": object()}], "cannot be stored")]
)
def test_what_is_no_row_is_named(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source_of_rows(rows, "mine", tmp_path)
