"""Texts with labels: classes, answers, or neither."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lamina.config import load_config
from lamina.data.formats._fields import cell, label_text
from lamina.data.labels import read_labels

CLASSES = [{"text": str(n), "label": n % 3} for n in range(12)]


def reading(folder: Path, rows: list[dict[str, Any]], **data: Any) -> dict[str, Any] | None:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_labels(load_config({"data": {"train": str(path), **data}}))
    return None if found is None else found.settings


def changed(**changes: Any) -> list[dict[str, Any]]:
    return [{**row, **changes} for row in CLASSES]


def test_zero_has_one_name() -> None:
    assert {label_text(zero) for zero in (0, 0.0, -0.0, "0", "-0.0", " 0.00 ")} == {"0"}
    assert [label_text(value) for value in (-1.0, "-10.0", -0.5)] == ["-1", "-10", "-0.5"]


def test_few_labels_are_classes(tmp_path: Path) -> None:
    assert reading(tmp_path, CLASSES) == {"loss.type": "classification"}
    upper = [{"id": 1, "TEXT": row["text"], "Label": float(row["label"])} for row in CLASSES]
    columns = {"text": "TEXT", "label": "Label"}
    assert reading(tmp_path, upper) == {"loss.type": "classification", "data.columns": columns}
    assert reading(tmp_path, upper, columns=columns) == {"loss.type": "classification", "data.columns": columns}


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        (CLASSES, {"format": "text"}),
        (CLASSES, {"columns": {"text": "text"}}),
        (changed(prompt="q", completion="a"), {}),
        (changed(label="one"), {}),
        (changed(label=0.5), {}),
        (changed(label=["a"]), {}),
        ([{"text": "a"}], {}),
        ([{"text": str(n), "label": n} for n in range(9)], {}),
    ],
    ids=["format", "columns", "answers", "one class", "scores", "lists", "no label", "numbers of rows"],
)
def test_other_data_is_left_alone(rows: list[dict[str, Any]], data: dict[str, Any], tmp_path: Path) -> None:
    assert reading(tmp_path, rows, **data) is None


def test_a_loss_that_is_given_decides(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CLASSES), encoding="utf-8")
    assert read_labels(load_config({"data": {"train": str(path)}, "loss": {"type": "cross_entropy"}})) is None


@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        ([n % 5 / 2 for n in range(20)], None),
        ([n * 0.37 for n in range(20)], None),
        (list(range(20)), None),
        ([n % 2 for n in range(20)], {"loss.type": "classification"}),
        ([None, *(n % 2 for n in range(19))], {"loss.type": "classification"}),
        ([n % 2 == 0 for n in range(20)], {"loss.type": "classification"}),
        ([f"answer {n}" for n in range(20)], {"data.columns": {"prompt": "text", "completion": "label"}}),
    ],
    ids=["ratings", "scores", "numbers of rows", "classes", "gap", "booleans", "answers"],
)
def test_a_csv_file_is_read_as_the_same_json(labels: list[Any], settings: Any, tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)]
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{row['text']},{cell(row['label'])}\n" for row in rows), "utf-8")
    of_csv = read_labels(load_config({"data": {"train": str(path)}}))
    assert (None if of_csv is None else of_csv.settings) == reading(tmp_path, rows) == settings


def test_rows_may_be_sorted_by_their_labels(tmp_path: Path) -> None:
    rows = [{"text": str(n), "label": ("bad", "good")[n // 250]} for n in range(500)]
    assert reading(tmp_path, rows) == {"loss.type": "classification"}
    assert reading(tmp_path, [{**row, "label": "bad"} for row in rows]) is None


def test_classes_are_not_counted_beyond_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": str(n), "label": n // 100}) + "\n" for n in range(300)), "utf-8")
    found = read_labels(load_config({"data": {"train": str(path)}}))
    assert found is not None and "(at least 2 classes)" in found.line
