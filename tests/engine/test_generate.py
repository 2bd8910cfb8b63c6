"""Generating: draws of its own, nothing left running, and what cannot be asked told of by itself."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import lamina
from lamina.adapters.load import Loaded
from lamina.chat.message import Message
from lamina.chat.template import ChatTemplate
from lamina.engine.fused_runner import FusedRunner
from lamina.errors import ConfigError, DataError
from tests.support.answers import answer, generate_each, notes, stream
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings

TURNS = [Message("user", "red green 1")]
NO_SYSTEM = """{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{%- endif %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def shared(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = tmp_path_factory.mktemp("generation")
    return lamina.load(lamina.train(settings(folder, model_folder, train={"max_steps": 8, "learning_rate": 0.03})).path)


@pytest.fixture
def loaded(shared: Loaded) -> Iterator[Loaded]:
    """The adapter, on a base whose generation_config may be changed."""
    own = shared.model.generation_config
    shared.model.generation_config = GenerationConfig.from_dict(own.to_dict())
    yield shared
    shared.model.generation_config = own


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_callers_generators_stay_as_they_are(loaded: Loaded, temperature: float, streamed: bool) -> None:
    before = torch.get_rng_state()
    if streamed:
        list(stream(loaded, TURNS, max_tokens=5, temperature=temperature, seed=1))
    else:
        answer(loaded, [TURNS], max_tokens=5, temperature=temperature, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_evaluating_and_merging_leave_the_callers_generators_alone(model_folder: Path, tmp_path: Path) -> None:
    def state() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]

    before = state()
    run = lamina.train(
        settings(tmp_path, model_folder, train={"max_steps": 8, "learning_rate": 0.03}, method={"lora_dropout": 0.1})
    )
    lamina.evaluate(run.path, exact_match=True, max_new_tokens=2)
    lamina.merge(run.path, tmp_path / "merged")
    assert state() == before


def test_answers_do_not_depend_on_the_callers_generators(loaded: Loaded) -> None:
    def draw(seed: int) -> list[str]:
        torch.manual_seed(seed)
        torch.rand(seed)
        together = answer(loaded, [TURNS], max_tokens=8, temperature=2.0, seed=5)
        return [*together, "".join(stream(loaded, TURNS, max_tokens=8, temperature=2.0, seed=5))]

    assert draw(1) == draw(2)
    assert draw(1)[0] == draw(1)[1]


def test_without_a_seed_a_stream_says_something_else_each_time(loaded: Loaded) -> None:
    answers = {"".join(stream(loaded, TURNS, max_tokens=12, temperature=5.0)) for _ in range(4)}
    assert len(answers) > 1


@pytest.mark.parametrize("pieces", [0, 1, None])
def test_a_stream_leaves_no_thread(loaded: Loaded, pieces: int | None) -> None:
    before = threading.active_count()
    answers = stream(loaded, TURNS, max_tokens=4000 if pieces is not None else 4, temperature=50.0, seed=0)
    said = list(itertools.islice(answers, pieces))
    answers.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert pieces is None or len(said) == pieces


def test_a_consumer_that_fails_ends_the_stream(loaded: Loaded) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        for _ in stream(loaded, TURNS, max_tokens=4000, temperature=50.0, seed=0):
            raise KeyboardInterrupt
    assert threading.active_count() == before


def test_what_fails_in_the_stream_reaches_the_caller(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(FusedRunner, "run", fails)
    with pytest.raises(RuntimeError, match="no"):
        list(stream(loaded, TURNS, max_tokens=5))


@pytest.mark.parametrize(
    "given",
    [
        {"repetition_penalty": 50.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(40, 120))},
        {"min_length": 200, "min_new_tokens": 20},
        {"num_beams": 4},
    ],
)
def test_the_bases_settings_change_no_answer(loaded: Loaded, given: dict[str, object]) -> None:
    plain = answer(loaded, [TURNS], max_tokens=12)
    assert notes(loaded, 0.0) == ""
    loaded.model.generation_config.update(**given)  # type: ignore[union-attr]
    assert answer(loaded, [TURNS], max_tokens=12) == plain
    assert ["".join(stream(loaded, TURNS, max_tokens=12))] == plain
    told = notes(loaded, 0.0)
    assert all(f"{name}={value}" in told for name, value in given.items())


def test_filters_of_draws_are_named_where_something_is_drawn(loaded: Loaded) -> None:
    loaded.model.generation_config.update(top_k=1, top_p=0.01, temperature=0.7)  # type: ignore[union-attr]
    assert notes(loaded, 0.0) == ""
    told = notes(loaded, 1.0)
    assert "top_k=1" in told and "top_p=0.01" in told and "temperature" not in told
    drawn = {answer(loaded, [TURNS], max_tokens=12, temperature=5.0, seed=seed)[0] for seed in range(4)}
    assert len(drawn) > 1


BAD = {
    "special token": "a <|im_end|> b",
    "no UTF-8": "a \udcff b",
    "half a surrogate pair": "\ud83d",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_prompt_that_cannot_be_asked_keeps_no_other_from_its_answer(loaded: Loaded, kind: str) -> None:
    good = ["red", "", "ü 日本 🎉"]
    alone = lamina.generate(loaded, good, max_new_tokens=6)
    mixed = generate_each(loaded, [good[0], BAD[kind], *good[1:]], max_tokens=6)
    assert isinstance(mixed.pop(1), DataError)
    assert mixed == alone
    with pytest.raises(DataError, match="prompt 2"):
        lamina.generate(loaded, [good[0], BAD[kind]], max_new_tokens=6)


def test_a_token_without_a_row_in_the_embedding_is_named(loaded: Loaded) -> None:
    tokenizer = build_tokenizer()
    while len(tokenizer) <= loaded.model.get_input_embeddings().num_embeddings:  # type: ignore[operator]
        tokenizer.add_tokens([f"<|more {len(tokenizer)}|>"])
    tokenizer.add_tokens(["<|call|>"])
    template = ChatTemplate(tokenizer, "model", loaded.template.source)
    other = replace(loaded, tokenizer=tokenizer, template=template)
    found = generate_each(other, ["a <|call|>", "red"], max_tokens=3)
    assert "<|call|>" in str(found[0]) and "embedding" in str(found[0])
    assert isinstance(found[1], str)


def test_a_system_turn_that_the_template_has_no_place_for_is_the_options_error(loaded: Loaded) -> None:
    other = replace(loaded, template=ChatTemplate(loaded.tokenizer, "model", NO_SYSTEM))
    assert isinstance(generate_each(other, ["red"], max_tokens=3)[0], str)
    with pytest.raises(ConfigError, match=r"--system.*System role not supported.*first prompt"):
        generate_each(other, ["red"], system="be kind", max_tokens=3)


def test_answers_end_where_a_table_of_positions_does(tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    model = build_model("gpt2", vocab_size=len(build_tokenizer()))
    room = model.config.max_position_embeddings
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    run = lamina.train(
        {
            "model": str(folder),
            "data": {"train": [str(write(tmp_path))], "eval": None, "max_length": 32},
            "train": {"max_steps": 1},
            "output_dir": str(tmp_path / "run"),
        }
    )
    loaded = lamina.load(run.path)
    found = generate_each(loaded, ["a", "b" * (room - 20), "c" * room], max_tokens=10 * room, temperature=9.0)
    assert [type(each) for each in found] == [str, str, DataError]
    assert f"positions for {room}" in str(found[2])


def write(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{i}", "completion": "{i}"}}\n' for i in range(6)), encoding="utf-8")
    return path
