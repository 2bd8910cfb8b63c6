"""Bare text from training to use: every command gives prompts as training did, unless an option says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lamina
from lamina.chat.message import Message
from lamina.engine.generator import Request
from lamina.runs import Run
from tests.support.cli import ROWS, Cli, write_rows


def train(folder: Path, model: Path, name: str, rows: list[dict[str, Any]], **data: Any) -> Run:
    path = write_rows(folder / f"{name}.jsonl", rows)
    settings: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(path), "eval": 0.2, "max_length": 128, **data},
        "method": {"type": "lora", "r": 2},
        "train": {"max_steps": 2},
        "dtype": "float32",
        "output_dir": str(folder / name),
    }
    return lamina.train(settings)


TEXTS = [{"text": f"### Human: say {i} ### Assistant: {i}"} for i in range(20)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("bare")
    return {
        "bare": train(folder, model_folder, "bare", ROWS, chat=False),
        "chat": train(folder, model_folder, "chat", ROWS),
        "text": train(folder, model_folder, "text", TEXTS),
    }


@pytest.mark.parametrize(("name", "is_bare"), [("bare", True), ("chat", False), ("text", True)])
def test_prompts_in_use_are_those_of_training(runs: dict[str, Run], name: str, is_bare: bool) -> None:
    run = runs[name]
    lock = json.loads((run.adapter / "lamina.json").read_text())["lock"]
    assert (lock["chat_template"] == "bare") is is_bare
    loaded = lamina.load(run.path)
    assert loaded.template.is_bare is is_bare
    assert lamina.load(run.path, chat=True).template.source == loaded.tokenizer.chat_template
    assert lamina.load(run.path, chat=False).template.is_bare
    assert loaded.certify().passed
    assert run.summary is not None and lamina.evaluate(run.path).loss == pytest.approx(run.summary.eval_loss, rel=1e-3)


def test_generate_follows_training_and_the_options(cli: Cli, runs: dict[str, Run], tmp_path: Path) -> None:
    bare = str(runs["bare"].path)
    options = ["-p", "say 3", "--max-new-tokens", "4", "--json"]

    def answer(*more: str) -> str:
        return str(cli("generate", bare, *options, *more).json()["answers"][0]["answer"])

    by_load = {
        chat: lamina.generate(lamina.load(bare, chat=chat), ["say 3"], max_new_tokens=4)[0] for chat in (False, True)
    }
    assert answer() == answer("--raw") == by_load[False]
    assert answer("--chat") == by_load[True]
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "say 3"}])
    for flag, chat in (("--raw", False), ("--chat", True)):
        out = tmp_path / f"{chat}.jsonl"
        result = cli("generate", bare, "--prompts", prompts, "--out", out, "--max-new-tokens", "4", flag)
        assert result.code == 0, result.err
        assert json.loads(out.read_text())["answer"] == by_load[chat]


def test_each_adapter_of_an_engine_gets_its_own_prompts(runs: dict[str, Run], model_folder: Path) -> None:
    adapters = {name: runs[name].path for name in ("bare", "chat")}
    with lamina.Engine(str(model_folder), adapters, dtype="float32") as engine:
        asked = {name: engine.tokenize(Request(messages=[Message("user", "say 3")], adapter=name)) for name in adapters}
        tokenizer = engine.base.tokenizer
    assert tokenizer.decode(asked["bare"]) == "say 3"
    assert tokenizer.decode(asked["chat"]) == "<|im_start|>user\nsay 3<|im_end|>\n<|im_start|>assistant\n"


def test_chat_gives_each_line_by_itself(cli: Cli, runs: dict[str, Run]) -> None:
    result = cli("chat", runs["bare"].path, "--max-new-tokens", "4", "--json", stdin="say 3\nsay 4\n")
    assert "without a chat template" in result.err
    said = [turn["text"] for turn in result.json()["turns"] if turn["from"] == "adapter"]
    alone = lamina.generate(runs["bare"].path, ["say 3", "say 4"], max_new_tokens=4)
    assert said == [text.strip() for text in alone]


def test_eval_compares_bare_answers(cli: Cli, runs: dict[str, Run], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:4])
    found = tmp_path / "found.jsonl"
    options = ["--data", rows, "--exact-match", "--max-new-tokens", "4", "--predictions", found, "--json"]
    result = cli("eval", runs["bare"].path, *options)
    assert result.json()["rows"] == 4
    first = json.loads(found.read_text().splitlines()[0])
    assert (first["prompt"], first["expected"]) == ("say 0", "0!")
    turns = [{"messages": [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]}]
    chats = write_rows(tmp_path / "chats.jsonl", turns)
    assert "--chat" in cli("eval", runs["bare"].path, "--data", chats).error()
    assert cli("eval", runs["bare"].path, "--data", chats, "--chat", "--json").json()["rows"] == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"chat": False, "chat_template": "chatml"}, "chat_template has no effect with chat: false"),
        ({"chat": False, "enable_thinking": True}, "enable_thinking has no effect with chat: false"),
        ({"chat": False, "thinking": "strip"}, "thinking has no effect with chat: false"),
        ({"chat_template_kwargs": {"tools": []}}, "reserved for the conversation"),
        ({"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False}, "Remove one of them"),
        ({"chat_template_kwargs": {"words": "x"}}, "does not read 'words'"),
    ],
)
def test_settings_that_do_nothing_are_errors(
    cli: Cli, tmp_path: Path, model_folder: Path, data: dict[str, Any], message: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model": str(model_folder), "data": {"train": str(path), **data}}))
    assert message in " ".join(cli("train", config).error().split())
    assert message in " ".join(cli("data", "show", config).error().split())


def test_check_and_show_know_every_kind_of_row(cli: Cli, tmp_path: Path, model_folder: Path) -> None:
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
    kinds = {
        "rendered": ([{"text": rendered}], "⟦ho<|im_end|>⟧"),
        "ends in EOS": ([{"text": "a text<|im_end|>"}], "⟦ text<|im_end|>⟧"),
        "tokens": ([{"input_ids": [9, 10, 2], "labels": [-100, 10, 2]}], "<|im_end|>⟧"),
        "usual names": ([{"Frage": "hi", "Antwort": "ho"}], "⟦ho<|im_end|>⟧"),
    }
    for name, (rows, shown) in kinds.items():
        path = write_rows(tmp_path / "rows.jsonl", rows)
        result = cli("data", "show", path, "--model", model_folder)
        assert (result.code, shown in result.out) == (0, True), (name, result.out, result.err)
        checked = cli("data", "check", path, "--model", model_folder, "--json").json()
        assert not [finding for finding in checked["findings"] if finding["severity"] == "error"], name
    result = cli("data", "show", path, "data.chat=false", "--model", model_folder)
    assert "hi⟦ho<|im_end|>⟧" in result.out
    table = tmp_path / "t.csv"
    table.write_bytes("Frage;Antwort\r\nWie heißt du?;Ünal\r\n".encode("cp1252"))
    checked = cli("data", "check", table, "--model", "none", "--json").json()
    assert checked["files"][0]["columns"] == {"prompt": "Frage", "completion": "Antwort"}
    assert "windows_1252" in [finding["code"] for finding in checked["findings"] if finding["severity"] == "info"]
