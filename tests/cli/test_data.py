"""`lamina data`: one JSON object, exit codes, and files that are written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from tests.support.broken_files import BROKEN
from tests.support.cli import Cli, write_rows
from tests.support.models_zoo import build_model
from tests.support.reasoning_families import reasoning_tokenizer

# Rows that are not similar: their words are digests.
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
    assert "already exists" in again.error()


def test_check_of_a_run_finds_what_leaks_into_its_evaluation(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_text("\n".join(map(json.dumps, ROWS)))
    held_out.write_text(json.dumps({"prompt": ROWS[4]["prompt"], "completion": "another answer"}))
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": str(model_folder), "data": {"train": str(train), "eval": str(held_out)}}))
    report = cli("data", "check", config, "--json").json()
    (leak,) = [finding for finding in report["findings"] if finding["code"] == "exact_leak"]
    assert leak["count"] == 1


def test_show_tells_what_is_in_the_loss(cli: Cli, rows: Path, model_folder: Path) -> None:
    (row,) = cli("data", "show", rows, "--model", model_folder, "--row", "2", "--json").json()["rows"]
    supervised = "".join(piece["text"] for piece in row["pieces"] if piece["supervised"])
    assert supervised.startswith(ROWS[1]["completion"])
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
        (["--html", rows], "--html: .*is not a page written by lamina"),
        (["--html", fixed, "--fix", fixed], "--fix: .*fixed.jsonl.log.jsonl already exists"),
        (["--html", page, "--fix", page], "--html: .*is also written by --fix"),
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
        ({"name": "f", "parameters": "not json"}, "parameters must be a JSON schema in JSON"),
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
        (tmp_path / "pipe", 2, "is not a regular file"),
        (tmp_path / ("x" * 300), 2, "too long"),
        (tmp_path / "cr.csv", 1, "the first line is not a header"),
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


def run_on(tmp_path: Path, model_folder: Path, **data: object) -> Path:
    """A run's configuration for data."""
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": str(model_folder), "data": data}))
    return config


def test_check_of_a_run_finds_what_ends_it(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*(row | {"topic": 1} for row in ROWS[:9]), ROWS[9]])
    result = cli("data", "check", run_on(tmp_path, model_folder, train=str(path), stratify_by="topic"), "--json")
    (misfit,) = [finding for finding in result.json()["findings"] if finding["code"] == "misfit"]
    assert (result.code, misfit["count"], misfit["examples"][0]["place"]["row"]) == (1, 1, 10)
    pairs = write_rows(tmp_path / "b.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3)
    result = cli("data", "check", run_on(tmp_path, model_folder, train=str(pairs)), "--json")
    assert "no_loss_for_it" in [finding["code"] for finding in result.json()["findings"]]


def test_check_of_a_run_looks_at_no_more_rows_than_it_uses(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*ROWS[:5], {"odd": 1}])
    config = run_on(tmp_path, model_folder, train=str(path), max_rows=5)
    result = cli("data", "check", config, "--fix", tmp_path / "fixed.jsonl", "--json")
    assert result.code == 0
    assert result.json()["fixed"]["removed"] == {"after_max_rows": 1}


def test_overrides_beside_a_file(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    options = ["--json", f"model={model_folder}", "train.per_device_train_batch_size=1", "data.max_length=256"]
    facts = cli("data", "check", path, *options).json()["facts"]
    wider = cli("data", "check", path, *options, "train.per_device_train_batch_size=8").json()["facts"]
    assert facts["micro_batches"] > wider["micro_batches"]
    result = cli("data", "check", path, "data.train=other.jsonl")
    assert result.code == 2
    assert "data.train" in result.error()
    result = cli("data", "check", run_on(tmp_path, model_folder, train=str(path)), "--column", "promt=q")
    assert result.code == 2
    assert "'promt' is not one of messages" in result.error()


def test_fix_of_several_files(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    pairs = write_rows(tmp_path / "a.jsonl", ROWS[:5])
    chats = write_rows(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "q"}]}])
    odd = write_rows(tmp_path / "c.jsonl", [{"odd": n} for n in range(300)])
    fixed = tmp_path / "fixed.jsonl"
    config = run_on(tmp_path, model_folder, train=[str(pairs), str(chats)])
    result = cli("data", "check", config, "--fix", fixed)
    assert result.code == 2
    assert "a.jsonl (prompt_completion) and" in result.error() and "b.jsonl (messages)" in result.error()
    assert not fixed.exists()
    config = run_on(tmp_path, model_folder, train=[str(pairs), str(odd)], replay={"path": str(chats)})
    report = cli("data", "check", config, "--fix", fixed, "--json").json()
    assert {**report["fixed"], "path": "", "log": ""} == {
        "path": "", "log": "", "rows": 306, "written": 5, "left_alone": 1, "removed": {"misfit": 300}, "repaired": {},
        "noted": 0,
    }  # fmt: skip
    assert [file["side"] for file in report["files"]] == ["train", "train", "replay"]


def test_fix_says_where_the_rest_of_a_file_is_left_out(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(bytes(BROKEN["elements that begin in different ways"].content))  # type: ignore[arg-type]
    result = cli("data", "check", path, "--model", "none", "--fix", tmp_path / "fixed.jsonl")
    assert "1 removed: unreadable_rest, each with everything after it in its file" in result.out


def test_special_tokens_in_plain_text(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "one document"}, {"text": "two<|im_end|>three"}])
    result = cli("data", "check", path, "--model", model_folder, "--json")
    (refused,) = [finding for finding in result.json()["findings"] if finding["code"] == "template_refusal"]
    assert (result.code, refused["examples"][0]["place"]["row"]) == (1, 2)
    assert "contains '<|im_end|>', a special token" in refused["examples"][0]["detail"]


def test_rejected_answers_are_looked_at_too(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    pairs = [{"prompt": "q", "chosen": "a", "rejected": text} for text in ("b", "b<|im_end|>", "long " * 300)]
    path = write_rows(tmp_path / "a.jsonl", pairs)
    report = cli("data", "check", path, "data.max_length=64", "--model", model_folder, "--json").json()
    rows = {found["code"]: [item["place"]["row"] for item in found["examples"]] for found in report["findings"]}
    assert rows["template_refusal"] == [2]
    assert rows["longer_than_max_length"] == [3]
    shown = cli("data", "show", path, "data.max_length=64", "--model", model_folder, "--json").json()["rows"]
    assert [bool(row["rejected"]) for row in shown] == [True, False, True]
    assert "rejected answer" in shown[1]["left_out"] and "more tokens" in shown[2]["left_out"]


def test_show_of_a_row_whose_answer_is_cut_off(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "word " * 300, "completion": "a"}])
    options = ["data.max_length=64", "data.overlong=cut", "--model", model_folder, "--json"]
    (shown,) = cli("data", "show", path, *options).json()["rows"]
    assert "in the loss" in shown["left_out"]


@pytest.fixture(scope="module")
def thinking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinking")
    tokenizer = reasoning_tokenizer("qwen3")
    build_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(*turns: tuple[str, str], **more: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def test_show_and_check_tell_what_the_template_does_to_answers(cli: Cli, tmp_path: Path, thinking_model: Path) -> None:
    thought = "<think>\nhm\n</think>\n\na"
    rows = [
        chat(("user", "q"), ("assistant", "a")),
        chat(("user", "q"), ("assistant", thought), ("user", "r"), ("assistant", thought)),
        chat(("user", "q"), ("assistant", "a"), chat_template_kwargs={"enable_thinking": False, "nope": 1}),
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    shown = cli("data", "show", path, "--model", thinking_model, "--json").json()["rows"]
    learned = ["".join(piece["text"] for piece in row["pieces"] if piece["supervised"]) for row in shown]
    assert learned == ["<think>\n\n</think>\n\na<|im_end|>", f"{thought}<|im_end|>", "a<|im_end|>"]
    assert [len(row["notes"]) for row in shown] == [1, 1, 1]
    assert "is not part of its generation prompt" in shown[0]["notes"][0]
    assert "not in the loss: answer 1" in shown[1]["notes"][0]
    assert "does not read 'nope'" in shown[2]["notes"][0]
    assert "note: '<think>" in cli("data", "show", path, "--model", thinking_model).out
    report = cli("data", "check", path, "--model", thinking_model, "--json").json()
    found = {f["code"]: [item["place"]["row"] for item in f["examples"]] for f in report["findings"]}
    assert (found["template_opening"], found["not_asked"], found["unread_kwargs"]) == ([1], [2], [3])
    given = cli("data", "check", path, "data.thinking=unsupervised", "--model", thinking_model, "--json").json()
    assert "reasoning_given" in {finding["code"] for finding in given["findings"]}


def test_reasoning_that_the_prompt_rules_out_is_an_error_of_the_data(
    cli: Cli, tmp_path: Path, thinking_model: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [chat(("user", "q"), ("assistant", "<think>hm</think>a"))])
    arguments = ["data", "check", path, "data.enable_thinking=false", "--model", thinking_model, "--json"]
    result = cli(*arguments)
    (refused,) = [f for f in result.json()["findings"] if f["code"] == "template_refusal"]
    assert (result.code, refused["severity"]) == (1, "error")
    assert "set data.thinking: strip" in refused["examples"][0]["detail"]
    assert cli(*arguments, "data.thinking=strip").code == 0


def test_enable_thinking_that_does_nothing_is_one_clear_error(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS[:3])
    result = cli("data", "check", path, "data.enable_thinking=true", "--model", model_folder)
    assert result.code == 2
    assert "data.enable_thinking" in result.error() and "remove it" in result.error()
    assert (
        "data.enable_thinking has no effect"
        in cli("data", "check", path, "data.enable_thinking=true", "--model", "none").error()
    )
