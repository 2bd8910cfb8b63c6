"""A cleaned file: what is removed, what is repaired, and that every row is accounted for."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from lamina.checks.examine import examine
from lamina.checks.fix import FixLog, fix_rows, repaired
from lamina.checks.row import CheckedRow
from lamina.data.read.rows import Fault
from lamina.errors import DataError, StorageError
from tests.support.checks import checked, numbered, row, settings

PASSAGE = (
    "The lighthouse on the northern cape was built in 1871 by masons who carried the granite up the cliff by hand."
)
SECRET = "ghp_Zk3mQ9xT2bLw8RfY5nVc7HgJ4pDs6Ae1Uo0i"


def fix(rows: list[CheckedRow], out: Path) -> tuple[FixLog, list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the log, the rows written and the lines of the log file."""
    log = fix_rows(iter(rows), examine(iter(rows), settings()), out)
    read = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (out, log.log)]
    return log, read[0], read[1]


def faulty_rows() -> list[CheckedRow]:
    fault = Fault("not_json", 3, 3, "no JSON", "{")
    return numbered(
        [
            row(PASSAGE, "Granite."),
            row("Who are you?", f"My token is {SECRET}."),
            checked("train.jsonl", 3, 3, fault=fault),
            checked("train.jsonl", 4, 4, value={"odd": 1}, misfit="no answer"),
            row("hello", "there", refusal="no system turn"),
            row("And?", "", drop_reason="empty_answer"),
            row(PASSAGE, "Granite."),
            row(f"{PASSAGE} Really.", "granite"),
            row("What is asked?", "This."),
            row("Long.", "Too long.", drop_reason="longer_than_max_length"),
            row("What is asked?", "Something else.", side="eval"),
        ]
    )


def test_every_row_is_written_or_left_out_for_a_reason(tmp_path: Path) -> None:
    log, written, lines = fix(faulty_rows(), tmp_path / "clean.jsonl")
    assert log.removed == {
        "not_json": 1,
        "misfit": 1,
        "template_refusal": 1,
        "empty_answer": 1,
        "exact_duplicate": 1,
        "near_duplicate": 1,
        "exact_leak": 1,
    }
    assert (log.rows, log.written, log.left_alone, log.noted) == (11, 3, 1, 1)
    assert [item["messages"][0]["content"] for item in written] == [PASSAGE, "Who are you?", "Long."]
    removed = {line["row"]: line for line in lines if line["action"] == "removed"}
    assert sorted(removed) == [3, 4, 5, 6, 7, 8, 9]
    assert removed[7]["detail"] == "train.jsonl:1" and removed[9]["detail"] == "eval.jsonl:1"


def test_secrets_are_noted_and_stay(tmp_path: Path) -> None:
    _, written, lines = fix(faulty_rows(), tmp_path / "clean.jsonl")
    assert SECRET in written[1]["messages"][1]["content"]
    noted = [line for line in lines if line["action"] == "noted"]
    assert [(line["row"], line["detail"]) for line in noted] == [(2, "GitHub token")]
    assert SECRET not in (tmp_path / "clean.jsonl.log.jsonl").read_text(encoding="utf-8")


def test_evaluation_rows_of_the_training_file_are_kept(tmp_path: Path) -> None:
    rows = [row("a", "b", 1, file="all.jsonl"), row("c", "d", 2, side="eval", file="all.jsonl")]
    log, written, _ = fix(rows, tmp_path / "clean.jsonl")
    assert len(written) == log.written == 2 and log.left_alone == 0


@pytest.mark.parametrize(
    ("remark", "before", "after"),
    [
        ("byte_order_mark", "\ufeffhello", "hello"),
        ("nul", "he\0llo", "hello"),
        ("half_a_character", "hello \ud83d", "hello "),
        ("mojibake", "Gr\u00c3\u00bc\u00c3\u009fe", "Grüße"),
        ("mojibake", "donâ€™t", "don’t"),
        ("mojibake", "Ã© and €", "Ã© and €"),  # cannot be decided
        ("mojibake", "café", "café"),
        ("not_a_number", float("nan"), None),
        ("replacement_character", "he\ufffdllo", "he\ufffdllo"),
    ],
)
def test_repairs(remark: str, before: Any, after: Any) -> None:
    broken = checked("a", 1, 1, value={"deep": [{"text": before}]}, remarks=(remark,))
    line, done = repaired(broken)
    assert json.loads(line) == {"deep": [{"text": after}]}
    assert done == ([] if before == after else [remark])


def test_what_json_has_no_place_for_becomes_text() -> None:
    value = {"word": b"abc", "bytes": b"\xff\x00", "day": date(2024, 2, 29), "deep": [{"score": float("inf")}]}
    line, done = repaired(checked("a", 1, 1, value=value))
    assert json.loads(line) == {"word": "abc", "bytes": "/wA=", "day": "2024-02-29", "deep": [{"score": None}]}
    assert done == ["made_text", "not_a_number"]


def test_replayed_rows_and_those_after_max_rows_are_not_written(tmp_path: Path) -> None:
    rows = [
        row(PASSAGE, "Granite."),
        checked("train.jsonl", 2, 2, drop_reason="after_max_rows"),
        row("And the cape?", "Northern.", side="replay", file="train.jsonl", number=3),
    ]
    log, written, _ = fix(rows, tmp_path / "clean.jsonl")
    assert len(written) == 1 and log.removed == {"after_max_rows": 1} and log.left_alone == 1


def test_a_row_without_remarks_is_as_it_was(tmp_path: Path) -> None:
    rows = [row("he\0llo", "a", value={"text": "he\0llo Ã©"})]
    log, written, lines = fix(rows, tmp_path / "clean.jsonl")
    assert written == [{"text": "he\0llo Ã©"}] and lines == [] and log.repaired == {}


def test_repairs_are_counted_and_logged(tmp_path: Path) -> None:
    rows = [row("x\0", "a", value={"x\0": "y"}, remarks=("nul", "duplicate_key"))]
    log, written, lines = fix(rows, tmp_path / "clean.jsonl")
    assert written == [{"x": "y"}] and log.repaired == {"nul": 1, "duplicate_key": 1}
    assert [(line["action"], line["reason"]) for line in lines] == [("repaired", "nul"), ("repaired", "duplicate_key")]
    assert json.loads(json.dumps(log.as_json()))["repaired"] == {"nul": 1, "duplicate_key": 1}


def test_a_file_that_is_read_is_not_overwritten(tmp_path: Path) -> None:
    rows = [row("a", "b", file=str(tmp_path / "data.jsonl"))]
    with pytest.raises(DataError, match="this file is an input"):
        fix_rows(rows, examine(rows, settings()), tmp_path / "data.jsonl")


@pytest.mark.parametrize("change", ["fewer", "more", "others"])
def test_rows_that_changed_since_the_check_leave_nothing_behind(tmp_path: Path, change: str) -> None:
    rows = numbered([row("a", "b"), row("c", "d")])
    again = {"fewer": rows[:1], "more": [*rows, row("e", "f", 3)], "others": rows[::-1]}[change]
    with pytest.raises(DataError, match="run the check again"):
        fix_rows(again, examine(rows, settings()), tmp_path / "clean.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = [row("a", "b")]
    with pytest.raises(StorageError):
        fix_rows(rows, examine(rows, settings()), tmp_path / "file" / "clean.jsonl")
