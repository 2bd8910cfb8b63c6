"""`lamina generate` with a file of prompts, and with a base in place of an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina.runs import Run
from tests.support.cli import Cli


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_of_prompts_becomes_a_file_of_answers(cli: Cli, trained: Run, tmp_path: Path) -> None:
    rows = [
        {"prompt": "red", "id": 7},
        "green",
        {"messages": [{"role": "user", "content": "blue"}]},
        {"prompt": "red", "adapter": None},
        {"prompt": "a <|im_end|> b"},
    ]
    out = tmp_path / "answers.jsonl"
    result = cli(
        "generate",
        trained.path,
        "--prompts",
        write(tmp_path / "p.jsonl", rows),
        "--out",
        out,
        "--json",
        "--max-new-tokens",
        "6",
    )
    assert result.code == 1
    assert result.json() == {
        "out": str(out),
        "rows": 5,
        "failed": 1,
        "answer_tokens": sum(row.get("answer_tokens", 0) for row in lines(out)),
    }
    found = lines(out)
    loaded = lamina.load(trained.path)
    assert [row["answer"] for row in found[:3]] == lamina.generate(loaded, ["red", "green", "blue"], max_new_tokens=6)
    assert found[3]["answer"] == lamina.generate(loaded, ["red"], max_new_tokens=6, base=True)[0]
    assert found[0]["id"] == 7 and found[0]["prompt_tokens"] > 0 and found[0]["finish_reason"] in ("stop", "length")
    assert "im_end" in json.dumps(found[4]["error"]) and "answer" not in found[4]


def test_a_base_answers_too_and_a_schema_holds(cli: Cli, model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": [1, 2]}')
    prompts, out = write(tmp_path / "p.jsonl", ["red"] * 3), tmp_path / "a.jsonl"
    result = cli("generate", model_folder, "--prompts", prompts, "--out", out, "--schema", schema, "--temperature", "1")
    assert result.code == 0 and "3 of 3 rows answered" in result.out
    assert all(json.loads(row["answer"]) in (1, 2) for row in lines(out))
    again = cli(
        "generate",
        model_folder,
        "--prompts",
        prompts,
        "--out",
        tmp_path / "b.jsonl",
        "--temperature",
        "1",
        "--schema",
        schema,
    )
    assert again.code == 0
    assert lines(out) == lines(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no prompts"),
        ("{no\n", "line 1 is not JSON"),
        ("[1]\n", "line 1 is a list"),
        ('{"prompt": "a"}\n{"question": "b"}\n', "line 2 has neither of prompt and messages"),
        ('{"prompt": "a", "messages": []}\n', "line 1 has prompt and messages of prompt and messages"),
        ('{"prompt": 3}\n', "prompt is 3"),
        ('{"prompt": "a", "seed": "x"}\n', "seed is 'x'"),
    ],
)
def test_a_file_that_is_none_is_one_error_that_names_its_line(
    cli: Cli, model_folder: Path, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    result = cli("generate", model_folder, "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "a.jsonl")
    assert result.code == 1 and words in result.error()
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompts", "p.jsonl"], "--out is required"),
        (["--out", "a.jsonl", "--prompt", "x"], "--out has no effect"),
        (["--prompts", "p.jsonl", "--out", "a.jsonl", "--prompt", "x"], "--prompts is given beside --prompt"),
        (["--prompt", "x", "--schema", "missing.json"], "has no JSON schema"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(
    cli: Cli, model_folder: Path, options: list[str], words: str
) -> None:
    result = cli("generate", model_folder, *options)
    assert result.code == 2 and words in result.error().replace(": ", " ")
