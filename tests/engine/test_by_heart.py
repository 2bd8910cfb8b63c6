"""A small model that knows eight rows by heart says all of them, whatever its template writes around an answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import lamina
from lamina.adapters.lock import Lock
from lamina.chat.message import Message
from lamina.comparison.measure import Job, Measuring, measure
from lamina.config import load_config
from lamina.evaluation.evaluated import Evaluation
from lamina.runs import Run
from tests.support.answers import stream
from tests.support.models_zoo import build_model
from tests.support.reasoning_families import reasoning_tokenizer

TOOL = {"name": "turn", "description": "", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}
WORDS = ("red", "blue", "green", "black", "white", "gold", "pink", "grey")


@dataclass(frozen=True)
class Case:
    """What is learned.

    Attributes:
        template: Of `reasoning_families`.
        reasoning: Whether the rows have reasoning.
        data: Of the configuration.
        calls: Whether the answers are calls of a function.
        kwargs: Of every second row.
        expected: What is compared of the first row, `red`.
        steps: Of training.
    """

    template: str
    reasoning: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    calls: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)
    expected: str = "der!"
    steps: int = 44

    def rows(self) -> list[dict[str, Any]]:
        """Eight words, to be said backwards."""
        return [self._row(word, self.kwargs if number % 2 else {}) for number, word in enumerate(WORDS)]

    def _row(self, word: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"role": "assistant", "content": f"{word[::-1]}!"}
        if self.calls:
            call = {"name": "turn", "arguments": {"word": word[::-1]}}
            answer |= {"content": "", "tool_calls": [{"type": "function", "function": call}]}
        if self.reasoning and not kwargs:
            answer["reasoning_content"] = f"hm {word[0]}"
        row: dict[str, Any] = {"messages": [{"role": "user", "content": word}, answer]}
        row |= {"chat_template_kwargs": kwargs} if kwargs else {}
        return row | ({"tools": [TOOL]} if self.calls else {})


REASONED = "<think>\nhm r\n</think>\n\nder!"
CALLED = "<tool_call>turn\n<arg_key>word</arg_key>\n<arg_value>der</arg_value>\n</tool_call>"
CASES = {
    "an empty section that the model writes": Case("qwen3"),
    "reasoning": Case("qwen3", True, expected=REASONED),
    "reasoning that is not learned": Case("qwen3", True, {"thinking": "unsupervised"}),
    "an empty section in the prompt": Case("qwen3", True, {"thinking": "strip", "enable_thinking": False}),
    "rows that say it for themselves": Case("qwen3", True, kwargs={"enable_thinking": False}, expected=REASONED),
    "an opened section that is closed at once": Case("qwq"),
    "reasoning in an opened section": Case("qwq", True, expected=REASONED),
    "reasoning in an opened section that is not learned": Case("qwq", True, {"thinking": "unsupervised"}),
    "a channel": Case("gpt-oss"),
    "reasoning in a channel": Case("gpt-oss", True, expected=REASONED),
    "reasoning in a channel that is not learned": Case("gpt-oss", True, {"thinking": "unsupervised"}),
    "calls": Case("glm4.5", calls=True, expected=CALLED, steps=60),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heart")


@cache
def learn(folder: Path, name: str) -> tuple[Run, Path]:
    """A run on a case's rows, to the end of its loss, and their file."""
    case = CASES[name]
    base, rows = folder / case.template, folder / f"{name}.jsonl"
    if not base.is_dir():
        tokenizer = reasoning_tokenizer(case.template)
        sizes = {"hidden_size": 96, "intermediate_size": 192, "head_dim": 16, "max_position_embeddings": 1024}
        build_model("llama", vocab_size=len(tokenizer), **sizes).save_pretrained(base)
        tokenizer.save_pretrained(base)
    rows.write_text("".join(json.dumps(row) + "\n" for row in case.rows()), encoding="utf-8")
    settings: dict[str, Any] = {
        "model": str(base),
        "data": {"train": str(rows), "eval": None, "max_length": 640, **case.data},
        "method": {"type": "full"},
        "train": {
            "max_steps": case.steps,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 8,
            "save_steps": 1000,
        },
        "dtype": "float32",
        "output_dir": str(folder / "runs" / name),
    }
    return lamina.train(settings), rows


def evaluation(folder: Path, name: str) -> Evaluation:
    run, rows = learn(folder, name)
    return lamina.evaluate(run.path, rows, exact_match=True, max_new_tokens=90)


@pytest.mark.parametrize("name", CASES)
def test_what_was_learned_by_heart_is_said(name: str, folder: Path) -> None:
    result = evaluation(folder, name)
    assert result.loss < 0.05
    assert [prediction.adapter for prediction in result.predictions] == [p.expected for p in result.predictions]
    assert (result.exact_match, result.base_exact_match) == (1.0, 0.0)
    assert result.predictions[0].expected == CASES[name].expected
    given = CASES[name].data.get("thinking") == "unsupervised"
    assert any("own reasoning is given" in note for note in result.notes) is given


@pytest.mark.parametrize("name", ["reasoning that is not learned", "calls"])
def test_comparisons_ask_in_the_same_way(name: str, folder: Path) -> None:
    run, rows = learn(folder, name)
    measured = measure(Job(str(run.path), False, Measuring(test=str(rows), max_new_tokens=90)))
    assert measured.score is not None
    assert measured.score.share == 1.0


@pytest.mark.parametrize("name", ["an empty section that the model writes", "an opened section that is closed at once"])
def test_generation_and_chat_say_the_answer_alone(name: str, folder: Path) -> None:
    loaded = lamina.load(learn(folder, name)[0].path)
    assert lamina.generate(loaded, list(WORDS)) == [f"{word[::-1]}!" for word in WORDS]
    pieces = list(stream(loaded, [Message("user", "red")]))
    assert "".join(pieces) == "der!" and all(pieces)


def test_a_loaded_adapter_is_asked_as_it_was_trained(folder: Path) -> None:
    run, rows = learn(folder, "an empty section in the prompt")
    loaded = lamina.load(run.path)
    assert (loaded.template.thinking, loaded.template.enable_thinking) == ("strip", False)
    prompt = loaded.template.render([Message("user", "red")], add_generation_prompt=True)
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")
    assert lamina.generate(loaded, list(WORDS)) == [f"{word[::-1]}!" for word in WORDS]
    for probe in loaded.adapter.probes:
        assert "<think>\n\n</think>\n\n" in str(loaded.tokenizer.decode(probe.input_ids))
    merged = lamina.merge(run.path, folder / "merged")
    tokenizer = AutoTokenizer.from_pretrained(merged.path)
    turns = [{"role": "user", "content": "red"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == prompt
    # The same file, on the run's own data: what it stored decides again.
    assert load_config(run.config_path).data.enable_thinking is False
    assert lamina.evaluate(loaded, rows, exact_match=True).exact_match == 1.0


def test_a_lock_from_before_is_read(folder: Path) -> None:
    loaded = lamina.load(learn(folder, "an empty section in the prompt")[0].path)
    assert loaded.adapter.lock is not None
    stored = loaded.adapter.lock.as_json()
    del stored["enable_thinking"]
    assert Lock.from_json(stored).enable_thinking is None
