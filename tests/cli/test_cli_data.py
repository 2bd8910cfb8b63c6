"""`lamina data`: one JSON object, exit codes, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from tests.cli.helpers import Cli
from tests.inspection.broken import BROKEN

# Rows that are not alike: their words are digests.
DIGESTS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(30)]
ROWS = [{"prompt": f"What is {text[:30]}?", "completion": f"It is {text[30:]}."} for text in DIGESTS]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    broken = ["{oops", json.dumps({"prompt": "q", "completion": ""}), json.dumps(ROWS[3])]
    path.write_text("\n".join([*map(json.dumps, ROWS), *broken]) + "\n", encoding="utf-8")
    return path


def test_check_names_each_fault_and_exits_with_1(cli: Cli, rows: Path, model_folder: Path) -> None:
    result = cli("data", "check", rows, "--model", model_folder, "--json")
    assert result.code == 1
    report = result.json()
    found = {finding["code"]: finding for finding in report["findings"]}
    assert found["not_json"]["severity"] == "error"
    assert found["not_json"]["examples"][0]["place"] == {"file": str(rows), "row": 31, "line": 31}
    assert found["exact_duplicate"]["examples"][0]["place"]["row"] == 33
    assert found["empty_answer"]["count"] == 1
    assert report["files"][0]["rows"] == 33
    assert report["facts"]["tokens_checked"] is True


def test_check_without_a_model_leaves_tokens_out(cli: Cli, rows: Path) -> None:
    assert cli("data", "check", rows, "--model", "none", "--json").json()["facts"]["tokens_checked"] is False


def test_check_says_how_far_it_is_without_a_terminal(cli: Cli, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lamina.cli.data.WORD_EVERY", -1.0)
    assert "rows ..." in cli("data", "check", str(rows), "--model", "none", "--json").err


def test_fix_writes_a_file_that_checks_clean(cli: Cli, rows: Path, tmp_path: Path, model_folder: Path) -> None:
    cleaned, page = tmp_path / "cleaned.jsonl", tmp_path / "report.html"
    first = cli("data", "check", rows, "--model", model_folder, "--fix", cleaned, "--html", page, "--json")
    assert first.json()["fixed"]["written"] == 30
    assert [json.loads(line) for line in cleaned.read_text().splitlines()] == ROWS
    changes = [json.loads(line) for line in (tmp_path / "cleaned.jsonl.log.jsonl").read_text().splitlines()]
    assert [(change["line"], change["action"]) for change in changes] == [(n, "removed") for n in (31, 32, 33)]
    assert "not_json" in page.read_text()
    assert cli("data", "check", cleaned, "--model", model_folder).code == 0
    again = cli("data", "check", rows, "--model", model_folder, "--fix", cleaned)
    assert again.code == 2
    assert "exists already" in again.error()


def test_check_of_a_run_finds_what_leaks_into_its_evaluation(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text("\n".join(map(json.dumps, ROWS)))
    held_out.write_text(json.dumps({"prompt": ROWS[4]["prompt"], "completion": "another answer"}))
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": str(model_folder), "data": {"train": str(train), "eval": str(held_out)}}))
    report = cli("data", "check", config, "--json").json()
    (leak,) = [finding for finding in report["findings"] if finding["code"] == "exact_leak"]
    assert leak["count"] == 1


def test_show_tells_what_is_learnt_from_what_is_not(cli: Cli, rows: Path, model_folder: Path) -> None:
    (row,) = cli("data", "show", rows, "--model", model_folder, "--row", "2", "--json").json()["rows"]
    learnt = "".join(piece["text"] for piece in row["pieces"] if piece["supervised"])
    assert learnt.startswith(ROWS[1]["completion"])
    assert (row["row"], row["line"], row["left_out"]) == (2, 2, "")
    (empty,) = cli("data", "show", rows, "--model", model_folder, "--row", "32", "--json").json()["rows"]
    assert "empty" in empty["left_out"]
    assert len(cli("data", "show", rows, "--model", model_folder, "--rows", "5", "--json").json()["rows"]) == 5


def test_show_of_a_row_that_is_not_there(cli: Cli, rows: Path, model_folder: Path) -> None:
    result = cli("data", "show", rows, "--model", model_folder, "--row", "99")
    assert result.code == 2
    assert "has no row 99" in result.error()


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_end_in_words(name: str, cli: Cli, tmp_path: Path) -> None:
    broken = BROKEN[name]
    path = tmp_path / broken.name
    if callable(broken.content):
        broken.content(path)
    else:
        path.write_bytes(broken.content)
    columns = [part for field, column in (broken.columns or {}).items() for part in ("--column", f"{field}={column}")]
    result = cli("data", "check", path, "--model", "none", "--json", *columns)
    assert result.code in (0, 1, 2)
    assert "Traceback" not in result.err
    answer = result.json()
    assert "findings" in answer or answer["error"]["message"]


def test_nothing_but_an_older_page_is_overwritten(cli: Cli, rows: Path, tmp_path: Path) -> None:
    content, page, fixed = rows.read_bytes(), tmp_path / "page.html", tmp_path / "fixed.jsonl"
    (tmp_path / "fixed.jsonl.log.jsonl").write_bytes(content)
    for options, words in (
        (["--html", rows], "--html: .*is no page of lamina's"),
        (["--html", fixed, "--fix", fixed], "--fix: .*fixed.jsonl.log.jsonl exists already"),
        (["--html", page, "--fix", page], "--html: .*is written by --fix as well"),
    ):
        result = cli("data", "check", rows, "--model", "none", "--json", *options)
        assert result.code == 2
        assert re.search(words, result.json()["error"]["message"])
    assert rows.read_bytes() == content == (tmp_path / "fixed.jsonl.log.jsonl").read_bytes()
    assert not fixed.exists()
    assert not page.exists()
    for _ in range(2):
        assert cli("data", "check", rows, "--model", "none", "--json", "--html", page).code == 1


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"type": "function", "function": "get_weather"}, "is not a function schema"),
        ({"name": "f", "parameters": "not json"}, "parameters is text that should be a JSON schema"),
        ({"name": "f", "parameters": {"properties": {}, "required": True}}, "required is bool, not a list of names"),
    ],
)
def test_tools_of_an_odd_shape_are_named_findings(cli: Cli, tmp_path: Path, tool: object, words: str) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    turns = [{"role": "user", "content": "q"}, call]
    good = {"messages": turns, "tools": [{"name": "f", "parameters": '{"properties": {}}'}]}
    path = tmp_path / "tools.jsonl"
    path.write_text("\n".join(map(json.dumps, [good, {"messages": turns, "tools": [tool]}])) + "\n")
    result = cli("data", "check", path, "--model", "none", "--json")
    (misfit,) = [finding for finding in result.json()["findings"] if finding["code"] == "misfit"]
    assert misfit["count"] == 1
    assert words in json.dumps(misfit)


def test_a_column_that_no_encoding_can_write_is_escaped(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "half.jsonl"
    rows = [{"prompt": f"p{number}", "completion": "c", "\ud83d": 1} for number in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options in (["--json"], []):
        assert cli("data", "check", path, "--model", "none", *options).code in (0, 1)


def test_paths_that_are_no_files_are_one_clear_error(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "cr.csv").write_bytes(b"prompt,completion\ra,b\r")
    for path, code, words in (
        (tmp_path / "pipe", 2, "is no regular file"),
        (tmp_path / ("x" * 300), 2, "too long"),
        (tmp_path / "cr.csv", 1, "the first line is no header"),
    ):
        result = cli("data", "check", path, "--model", "none", "--json")
        assert result.code == code
        assert words in result.json()["error"]["message"]


def test_a_mapping_whose_template_breaks_is_one_clear_error(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"q": "a", "a": "b"}) + "\n")
    options = ["--column", 'prompt={{ "{} {}".format(q) }}', "--column", "completion=a"]
    result = cli("data", "check", path, "--model", "none", "--json", *options)
    assert result.code == 1
    assert "data.columns.prompt" in json.dumps(result.json())


@pytest.mark.parametrize("labels", [(1, 0), ("1", "0"), (1.0, 0.0), ("True", "false")])
def test_labels_of_one_and_zero_judge_an_answer(cli: Cli, tmp_path: Path, labels: tuple[object, object]) -> None:
    path = tmp_path / "kto.jsonl"
    rows = [{"prompt": f"q{i}", "completion": f"a{i}", "label": labels[i % 2]} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (file,) = cli("data", "check", path, "--model", "none", "--json").json()["files"]
    assert file["format"] == "unpaired_preference"
