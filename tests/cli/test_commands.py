"""The commands, with a small trained adapter: each renders what the library returns."""

from __future__ import annotations

import html
import io
import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import lamina
from lamina.api.terminal import TrainingView
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.cli.chat import HELP, run_chat
from lamina.engine.generator import ADAPTER
from lamina.engine.sampling import Sampling
from lamina.runs import Run
from lamina.runs.events import Event
from tests.support.answers import FakeGenerator
from tests.support.cli import ROWS, Cli, write_rows

SHORT = ("--max-new-tokens", "6")


def test_train_prints_the_summary_as_one_json_object(cli: Cli, config: Path, tmp_path: Path) -> None:
    result = cli("train", config, "--json")
    assert result.code == 0
    summary = result.json()
    recorded = Run(tmp_path / "run").summary
    assert recorded is not None and summary == recorded.as_json()
    assert (summary["run"], summary["steps"]) == (str(tmp_path / "run"), 2)
    assert "20 rows (prompt_completion), 16 train, 4 eval" in result.err


def test_train_for_people_keeps_stdout_empty_and_says_how_to_go_on(cli: Cli, config: Path, tmp_path: Path) -> None:
    result = cli("train", config, "train.max_steps=1", f"output_dir={tmp_path / 'other'}")
    assert (result.code, result.out) == (0, "")
    for words in ("Done", "eval loss", "sha256:", f"lamina chat {tmp_path / 'other'}"):
        assert words in result.err
    again = cli("train", config, "train.max_steps=1", f"output_dir={tmp_path / 'other'}")
    assert again.code == 1
    assert "already holds a run" in again.error()
    resumed = cli("train", config, "train.max_steps=1", f"output_dir={tmp_path / 'other'}", "--resume", "--json")
    assert (resumed.code, resumed.json()["steps"]) == (0, 1)


@pytest.mark.parametrize("as_json", [True, False])
def test_interrupted_training_exits_with_75_and_one_json_object(
    as_json: bool, cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(view: TrainingView, event: Event) -> None:
        if event.kind == "step" and event.step == 1:
            signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(TrainingView, "__call__", stop)
    result = cli("train", config, *["--json"] * as_json)
    run = Run(tmp_path / "run")
    assert (result.code, run.status) == (75, "interrupted")
    assert f"Go on with: {run.resume_command}" in result.err
    assert "stopped by SIGHUP after step 1" in result.err and "stopped: stopped" not in result.err
    assert str(tmp_path) in run.resume_command
    if not as_json:
        assert result.out == ""
        return
    error = result.json()["error"]
    assert (error["type"], error["signal"], error["step"]) == ("Interrupted", "SIGHUP", 1)
    assert (error["run"], error["resume"]) == (str(run.path), run.resume_command)


@pytest.mark.parametrize(("kind", "words"), [("step", "lamina train /"), ("note", "the same command again")])
def test_training_that_is_stopped_at_once_exits_with_75_too(
    kind: str, words: str, cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(view: TrainingView, event: Event) -> None:
        if event.kind == kind:
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingView, "__call__", stop)
    result = cli("train", config, "--json")
    assert result.code == 75
    error = result.json()["error"]
    assert error["type"] == "Interrupted"
    assert f"with: {words}" in error["message"]


def test_resume_of_nothing_is_a_usage_error(cli: Cli, config: Path, tmp_path: Path) -> None:
    result = cli("train", config, "--resume", "--json")
    assert result.code == 2
    assert str(tmp_path / "run") in result.json()["error"]["message"]
    assert not (tmp_path / "run").exists()


def test_generate_answers_in_order(cli: Cli, trained: Run) -> None:
    result = cli("generate", trained.path, "-p", "say 3", "-p", "hello there", *SHORT, "--json")
    answers = lamina.generate(trained.path, ["say 3", "hello there"], max_new_tokens=6)
    assert result.code == 0
    assert result.json() == {
        "answers": [{"prompt": "say 3", "answer": answers[0]}, {"prompt": "hello there", "answer": answers[1]}]
    }
    for_people = cli("generate", trained.path, "-p", "say 3", *SHORT)
    assert (for_people.code, for_people.out) == (0, answers[0] + "\n")


def test_generate_reads_prompts_from_stdin(cli: Cli, trained: Run) -> None:
    result = cli("generate", trained.path, *SHORT, "--json", stdin="say 3\n\n  \nsay 4 \n")
    assert [item["prompt"] for item in result.json()["answers"]] == ["say 3", "say 4 "]


def test_generate_options_reach_the_library(cli: Cli, trained: Run) -> None:
    def answer(*options: str) -> str:
        return cli("generate", trained.path, "-p", "say 3", "--json", *options).json()["answers"][0]["answer"]

    adapter, base = answer(*SHORT), answer(*SHORT, "--base")
    assert adapter != base
    assert base == lamina.generate(trained.path, ["say 3"], max_new_tokens=6, base=True)[0]
    assert len(answer("--max-new-tokens", "2", "--base")) < len(base)
    hot = ("--temperature", "5", "--base", *SHORT)
    assert answer(*hot, "--seed", "1") == answer(*hot, "--seed", "1") != answer(*hot, "--seed", "2")


def test_generate_passes_the_system_turn(cli: Cli, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = stand_in_for_generate(monkeypatch, ["fine"])
    cli("generate", trained.path, "-p", "q", "--system", "be kind", "--temperature", "0.5", "--seed", "3")
    assert (seen["prompts"], seen["system"], seen["sampling"]) == (["q"], "be kind", Sampling(0.5, 256, 3))


def test_answers_with_markup_are_shown_as_they_stand(cli: Cli, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[bold]x[/bold] [/nope]\t" + "long " * 100 + "\n  \tindented  \x1b[1m"
    stand_in_for_generate(monkeypatch, [text])
    assert cli("generate", trained.path, "-p", "q").out == text + "\n"


def test_answers_with_colons_are_shown_as_they_stand(cli: Cli, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_generate(monkeypatch, ["a :smile: b"])
    assert cli("generate", trained.path, "-p", "q").out == "a :smile: b\n"


def stand_in_for_generate(monkeypatch: pytest.MonkeyPatch, answers: list[str]) -> dict[str, Any]:
    """Makes the library return `answers`, and records its arguments."""
    seen: dict[str, Any] = {}

    def generate(generator: object, prompts: list[str], sampling: Sampling, **options: Any) -> list[str]:
        seen.update(options, prompts=prompts, sampling=sampling)
        return answers

    monkeypatch.setattr("lamina.engine.generate.generate_each", generate)
    return seen


def test_chat_switches_between_adapter_and_base(cli: Cli, trained: Run) -> None:
    result = cli(
        "chat",
        trained.path,
        *SHORT,
        "--json",
        stdin="say 3\n/reset\n/base\nsay 3\n\n/what\n/RESET\n/adapter\nsay 3\n/exit\nnot heard\n",
    )
    assert result.code == 0
    turns = result.json()["turns"]
    assert [turn["from"] for turn in turns] == ["user", "adapter", "user", "base", "user", "adapter"]
    assert [turn["text"] for turn in turns[::2]] == ["say 3"] * 3
    adapter, base = (lamina.generate(trained.path, ["say 3"], max_new_tokens=6, base=b)[0].strip() for b in (0, 1))
    assert [turn["text"] for turn in turns[1::2]] == [adapter, base, adapter]
    assert result.err.count(HELP) == 2  # at the start, and for /what


def test_chat_streams_to_stdout_until_the_input_ends(cli: Cli, trained: Run) -> None:
    result = cli("chat", trained.path, *SHORT, stdin="say 3")
    assert result.code == 0
    assert result.out == lamina.generate(trained.path, ["say 3"], max_new_tokens=6)[0] + "\n"


def test_chat_goes_on_after_a_line_that_cannot_be_asked(cli: Cli, trained: Run) -> None:
    result = cli("chat", trained.path, *SHORT, "--json", stdin="say 3\na <|im_end|> b\n\udcff\n/reset\nsay 3\n")
    assert result.code == 0
    turns = result.json()["turns"]
    assert [turn["text"] for turn in turns[::2]] == ["say 3"] * 2
    assert turns[1] == turns[3]
    assert result.err.count("error: ") == 2 and "<|im_end|>" in result.err and "UTF-8" in result.err
    assert "in the data" not in result.err


@pytest.mark.parametrize("command", [["chat"], ["generate", "-p", "hi"]])
def test_a_system_turn_without_a_place_is_an_error_before_anything_is_asked(
    command: list[str], cli: Cli, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = lamina.load

    def without_place(*given: Any, **options: Any) -> Any:
        loaded = load(*given, **options)
        source = (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            + loaded.template.source
        )
        return replace(loaded, template=ChatTemplate(loaded.tokenizer, "model", source))

    monkeypatch.setattr("lamina.engine.generate.load", without_place)
    word, *options = command
    result = cli(word, trained.path, *options, "--system", "be kind", *SHORT, stdin="hello\n")
    assert (result.code, result.out) == (2, "")
    assert "--system" in result.error() and "no system" in result.error()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bad_prompt_keeps_no_other_from_its_answer(as_json: bool, cli: Cli, trained: Run) -> None:
    stdin = "\ufeffsay 3\r\na <|im_end|> b\r\nsay 4\r\n"
    result = cli("generate", trained.path, *SHORT, *["--json"] * as_json, stdin=stdin)
    answers = lamina.generate(trained.path, ["say 3", "say 4"], max_new_tokens=6)
    assert result.code == 1
    assert "prompt 2" in result.error() and "<|im_end|>" in result.error()
    if as_json:
        first, bad, last = result.json()["answers"]
        assert [first["answer"], last["answer"]] == answers
        assert bad["error"]["type"] == "DataError" and "answer" not in bad
    else:
        assert result.out == "".join(f"{text}\n" for text in answers)


def test_what_the_base_adds_to_generating_is_left_out_and_told_once(
    cli: Cli, trained: Run, model_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    settings = {"repetition_penalty": 30.0, "top_k": 3, "eos_token_id": None}
    (base / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    result = cli("generate", trained.path, "--model", base, "-p", "say 3", "-p", "say 4", *SHORT)
    assert result.out.splitlines() == lamina.generate(trained.path, ["say 3", "say 4"], max_new_tokens=6)
    assert result.err.count("repetition_penalty=30.0") == 1
    assert cli("eval", trained.path, "--model", base, "--exact-match", *SHORT).err.count("repetition_penalty=30.0") == 1
    assert "repetition_penalty" not in cli("eval", trained.path, "--model", base, "--answers", 0).err


@pytest.mark.parametrize("system", [None, "be kind"])
def test_chat_remembers_until_reset(system: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = FakeGenerator(lambda request: " answer ")
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n/base\ntwo\n?!\n/reset\nthree\n/quit\nfour\n"))
    said = run_chat(generator, Sampling(0.5, 8, seed=7), system, quiet=True)

    start = [Message("system", system)] if system else []
    one, two, three = (Message("user", text) for text in ("one", "two", "three"))
    answer = Message("assistant", "answer")
    heard = [(request.messages, request.adapter) for request in generator.asked]
    assert heard == [([*start, one], ADAPTER), ([*start, one, answer, two], None), ([*start, three], None)]
    assert [request.sampling for request in generator.asked] == [Sampling(0.5, 8, seed) for seed in (7, 9, 11)]
    assert [turn["from"] for turn in said] == ["user", "adapter", "user", "base", "user", "base"]


def test_generating_needs_no_more_than_the_contract(cli: Cli, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = FakeGenerator(lambda request: f"{request.adapter} {(request.messages or ())[-1].content}")
    monkeypatch.setattr("lamina.engine.generate.build_generator", lambda loaded: generator)
    result = cli("generate", trained.path, "-p", "one", "-p", "?!", "-p", "two", "--base", "--temperature", "0.5")
    assert (result.code, result.out) == (1, "None one\nNone two\n")
    assert "prompt 2: it cannot be asked" in result.error() and "nothing answers at temperature 0.5" in result.err
    assert [request.sampling for request in generator.asked] == [Sampling(0.5, 256, 0)] * 2
    result = cli("chat", trained.path, "--seed", "3", stdin="one\n")
    assert result.out == "adapter one\n"
    assert generator.asked[-1].sampling == Sampling(0.0, 512, 3)


def test_eval_gives_the_librarys_figures(cli: Cli, trained: Run) -> None:
    result = cli("eval", trained.path, *SHORT, "--json")
    assert result.code == 0
    figures = result.json()
    assert figures == lamina.evaluate(trained.path, answers=5, general=True, max_new_tokens=6).as_json()
    assert trained.summary is not None
    assert figures["loss"] == pytest.approx(trained.summary.eval_loss, rel=1e-4)
    assert figures["base_loss"] == pytest.approx(trained.summary.eval_loss_first, rel=1e-4)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert (figures["rows"], figures["exact_match"]) == (4, None)


def test_eval_for_people(cli: Cli, trained: Run, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "new.jsonl", [*ROWS[:3], {"prompt": "q", "completion": ""}])
    page = tmp_path / "page.html"
    result = cli("eval", trained.path, "--data", path, "--max-rows", "4", "--html", page, *SHORT)
    figures = lamina.evaluate(trained.path, path)
    assert result.code == 0
    answers = lamina.generate(trained.path, [row["prompt"] for row in ROWS[:3]], max_new_tokens=6)
    for row, answer in zip(ROWS, answers, strict=False):
        for text in (row["prompt"], row["completion"], *answer.strip().splitlines()):
            assert text in result.out and html.escape(text) in page.read_text()
    for words in ("token f1", "chrf", "exact match", "general text loss", "forgetting:", "3 rows say little"):
        assert words in result.out and words in page.read_text()
    for words in (f"{figures.loss:.4f}", f"{figures.base_loss:.4f}", "base model", "3 rows; dropped 1: empty_answer"):
        assert words in result.out


def test_eval_with_columns_and_max_rows(cli: Cli, trained: Run, tmp_path: Path) -> None:
    renamed = [{"question": row["prompt"], "answer": row["completion"]} for row in ROWS]
    path = write_rows(tmp_path / "new.jsonl", renamed)
    columns = ("--column", "prompt=question", "--column", "completion=answer")
    figures = cli("eval", trained.path, "--data", path, *columns, "--max-rows", "5", "--json").json()
    assert (figures["rows"], figures["dropped"]) == (5, {"after_max_rows": 15})
    same = lamina.evaluate(trained.path, write_rows(tmp_path / "same.jsonl", ROWS[:5]))
    assert figures["loss"] == pytest.approx(same.loss)


def test_exact_match_and_predictions(cli: Cli, trained: Run, tmp_path: Path) -> None:
    prompts = ["say 3", "say 4"]
    adapter = [text.strip() for text in lamina.generate(trained.path, prompts, max_new_tokens=6)]
    base = [text.strip() for text in lamina.generate(trained.path, prompts, max_new_tokens=6, base=True)]
    assert adapter[0] and adapter[0] != base[0]
    completions = [adapter[0] + " ", "something else"]
    rows = [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
    data = write_rows(tmp_path / "data.jsonl", rows)
    out = tmp_path / "deep" / "predictions.jsonl"
    result = cli("eval", trained.path, "--data", data, "--exact-match", *SHORT, "--predictions", out, "--json")
    assert (result.json()["exact_match"], result.json()["base_exact_match"]) == (0.5, 0.0)
    right, wrong = {"exact_match": [1.0, 0.0]}, {"exact_match": [0.0, 0.0]}
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [
        {"row": 1, "prompt": "say 3", "expected": adapter[0], "adapter": adapter[0], "base": base[0], "scores": right},
        {
            "row": 2,
            "prompt": "say 4",
            "expected": "something else",
            "adapter": adapter[1],
            "base": base[1],
            "scores": wrong,
        },
    ]
    assert "50.0%" in cli("eval", trained.path, "--data", data, "--exact-match", *SHORT).out


def test_merge_writes_a_plain_model_with_its_certificate(cli: Cli, trained: Run, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    result = cli("merge", trained.path, "--out", out, "--json")
    assert result.code == 0
    merged = result.json()
    assert merged["path"] == str(out)
    assert merged["certificate"]["passed"] is True
    assert merged["certificate"] == json.loads((out / "lamina_certificate.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    loaded = lamina.load(trained.path, dtype="float32")
    ids = torch.tensor([loaded.tokenizer("hello there").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, loaded.model(ids).logits, rtol=1e-3, atol=1e-3)


def test_merge_for_people(cli: Cli, trained: Run, tmp_path: Path) -> None:
    result = cli("merge", trained.adapter, "--out", tmp_path / "merged", "--dtype", "bfloat16")
    assert result.code == 0
    assert f"merged model: {tmp_path / 'merged'}" in result.out
    config = json.loads((tmp_path / "merged" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "bfloat16"
