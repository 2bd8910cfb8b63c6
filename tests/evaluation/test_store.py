"""A stored evaluation is read as it was written, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lamina.errors import ConfigError, NewerVersionError
from lamina.evaluation.store import EvaluationError, check_place, content_digest, read_evaluation, write_evaluation
from tests.support.evaluation import stored_row

RESULT: dict[str, Any] = {"kind": "evaluation", "subjects": [], "value": 0.1 + 0.2, "none": None, "text": "é"}


def write(folder: Path) -> str:
    rows = [stored_row(number, {"a": {"m": float(number)}, "b": {}}) for number in range(5)]
    return write_evaluation(folder, RESULT, {"task": rows, "general": rows[:1]}, "<p>page \ud800</p>")


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    digest = write(tmp_path / "one")
    stored = read_evaluation(tmp_path / "one")
    assert stored.digest == digest
    assert {name: stored.result[name] for name in RESULT} == RESULT
    assert [row["row"] for row in stored.rows["task"]] == [0, 1, 2, 3, 4]
    assert stored.values("task", "a", "m") == {f"sha256:{number:064x}": float(number) for number in range(5)}
    assert write(tmp_path / "two") == digest, "the same content has the same digest"


@pytest.mark.parametrize(("task", "subject", "metric"), [("task", "a", "n"), ("task", "b", "m"), ("other", "a", "m")])
def test_values_that_are_not_there_are_an_error(tmp_path: Path, task: str, subject: str, metric: str) -> None:
    write(tmp_path / "one")
    with pytest.raises(EvaluationError, match=metric):
        read_evaluation(tmp_path / "one").values(task, subject, metric)


@pytest.mark.parametrize("name", ["result.json", "rows/task.jsonl", "rows/general.jsonl", "page.html"])
def test_no_byte_may_change(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises((EvaluationError, NewerVersionError)):
            read_evaluation(tmp_path)
    for content in (whole + b" ", whole[:-1], b""):
        path.write_bytes(content)
        with pytest.raises(EvaluationError):
            read_evaluation(tmp_path)
    path.write_bytes(whole)
    read_evaluation(tmp_path)


def test_only_an_evaluation_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    for name in ("one", "empty", "new"):
        check_place(tmp_path / name)
    (tmp_path / "one" / "notes.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: mine")
    for name in ("one", "run", "run/config.yaml"):
        with pytest.raises(ConfigError, match=r"--out: .* would be lost"):
            check_place(tmp_path / name)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "rows" / "task.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"task\.jsonl: cannot be read"):
        read_evaluation(tmp_path)
    with pytest.raises(EvaluationError, match="there is no evaluation here"):
        read_evaluation(tmp_path / "nope")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "rows/../../x.jsonl", "rows/a/b.jsonl", "/etc/passwd", "rows/.jsonl"]
)
def test_it_names_no_file_outside(tmp_path: Path, name: str) -> None:
    """Not even with a digest that fits."""
    write(tmp_path)
    content = json.loads((tmp_path / "result.json").read_text())
    content["files"][name] = "sha256:" + "0" * 64
    del content["digest"]
    content["digest"] = content_digest(content)
    (tmp_path / "result.json").write_text(json.dumps(content, indent=1) + "\n")
    with pytest.raises(EvaluationError, match="that no evaluation has"):
        read_evaluation(tmp_path)


def test_a_newer_format_is_said(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "result.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(NewerVersionError):
        read_evaluation(tmp_path)
