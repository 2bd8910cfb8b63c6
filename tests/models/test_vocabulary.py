"""Tokens that a tokenizer knows and the base has no row for: found before anything runs, wherever a text comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

import lamina
from lamina.adapters.load import Loaded
from lamina.chat.message import Message
from lamina.checks.check import check_data
from lamina.checks.findings import CheckReport
from lamina.checks.target import Target
from lamina.config import DataConfig, load_config
from lamina.data.example import EncodedExample
from lamina.data.side import Side, whole_rows
from lamina.data.store import StoredRow, TokenStore, cached_store
from lamina.errors import ConfigError, DataError
from lamina.evaluation.forgetting import general_loss, general_pieces
from lamina.methods.shared.base import inject
from lamina.models.load import load_base
from lamina.models.vocabulary import declared_rows, embedding_rows, head_rows
from tests.support.answers import stream
from tests.support.models_zoo import CHATML, build_model, build_tokenizer
from tests.support.training import settings

ROWS = 259
WORD = "<|call|>"
METHODS: list[dict[str, Any]] = [
    {"type": "lora"},
    {"type": "full"},
    {"type": "lora", "modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]},
    {"type": "prompt_tuning", "num_virtual_tokens": 3},
    {"type": "prefix_tuning", "num_virtual_tokens": 3},
    {"type": "p_tuning", "num_virtual_tokens": 3},
    {"type": "lora", "init_lora_weights": "eva"},
    {"type": "peft", "peft_type": "LORA", "target_modules": ["q_proj"]},
]


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: int, family: str = "llama") -> Path:
    build_model(family, vocab_size=rows).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokens were added to the tokenizer, and the pad token too; the embedding was not resized."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([WORD, "<|result|>"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert len(tokenizer) == ROWS + 3
    return save(tmp_path_factory.mktemp("added"), tokenizer, ROWS)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ChatML's tokens and template were added to a tokenizer without them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={token: n for n, token in enumerate(["<|endoftext|>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return save(tmp_path_factory.mktemp("chatml"), tokenizer, 257)


def pairs(*words: str) -> list[dict[str, str]]:
    return [{"prompt": f"say {n}", "completion": word} for n, word in enumerate(words)]


@pytest.fixture
def values(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The settings of a short run on rows, under a new name each time."""

    def build(
        model: Path, rows: list[dict[str, Any]], method: dict[str, Any] | None = None, **data: Any
    ) -> dict[str, Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = settings(tmp_path, model, f"run-{len(list(tmp_path.glob('run-*')))}", train={"max_steps": 2})
        run["data"] |= {"train": str(path), "eval": None, **data}
        run["train"]["eval_steps"] = None
        return run | {"method": method or {"type": "lora"}}

    return build


def check(run: dict[str, Any]) -> CheckReport:
    target = Target(DataConfig(**run["data"]), run["model"], is_run=True)
    return check_data(target, lambda said: None, lambda rows: None)[0]


@pytest.fixture(scope="module")
def loaded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """An adapter on the base whose embedding is too small, trained on rows without such tokens."""
    folder = tmp_path_factory.mktemp("loaded")
    return lamina.load(lamina.train(settings(folder, base, train={"max_steps": 2})).path)


# How many rows there are.


def test_rows_are_those_of_the_embedding(family: str, tmp_path: Path) -> None:
    """What the folder tells without weights is what the loaded model has."""
    folder = save(tmp_path / "base", build_tokenizer(), 301, family)
    model = load_base(str(folder), "float32").model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert embedding_rows(model) == head_rows(model) == declared_rows(folder, tokenizer) == 301
    tokenizer.add_tokens([f"<{n}>" for n in range(99)])
    assert declared_rows(folder, tokenizer) == 301


@pytest.mark.parametrize(
    "method",
    [
        {"type": "lora", "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"type": "full"},
        {"type": "peft", "peft_type": "LORA", "target_modules": ["q_proj"], "trainable_token_indices": [3]},
    ],
)
def test_rows_of_an_embedding_that_an_adapter_wraps(method: dict[str, Any]) -> None:
    model = build_model("llama", vocab_size=301)
    inject(model, load_config({"data": {"train": "unused"}, "method": method}).method, seed=0)
    assert embedding_rows(model) == 301


def test_rows_of_a_nested_configuration_and_of_none(tmp_path: Path) -> None:
    text = build_model("llama", vocab_size=301).config
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text.to_dict())).save_pretrained(
        tmp_path
    )
    tokenizer = build_tokenizer()
    assert declared_rows(tmp_path, tokenizer) == 301
    tokenizer.add_tokens([f"<{n}>" for n in range(99)])
    assert declared_rows(tmp_path, tokenizer) in (301, None)  # None where no model can be made of it
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    assert declared_rows(tmp_path, tokenizer) is None


def test_the_first_token_beyond_is_found_wherever_it_is() -> None:
    """Against a search through all ids: rows of several stores, cut rows, tokens in the loss or all."""
    generator = np.random.default_rng(0)
    for trial in range(40):
        stores, limit = [], int(generator.integers(1, 40))
        for _ in range(3):
            examples = [
                EncodedExample(
                    generator.integers(0, 42, size=int(generator.integers(0, 9))).astype(np.int32), np.zeros(0), row
                )
                for row in range(1, int(generator.integers(0, 6)) + 1)
            ]
            stores.append(_store(examples, generator, f"{trial}-{len(stores)}"))
        chosen = [
            whole_rows(store, number, np.flatnonzero(generator.random(len(store)) < 0.7))
            for number, store in enumerate(stores)
        ]
        pieces = type(chosen[0]).join(chosen)
        pieces.length[:] = generator.integers(0, pieces.length + 1)
        side = Side(stores, pieces)
        for in_loss in (False, True):
            wanted = [
                (example.file_index, example.row, int(token))
                for example in side
                for token in (example.input_ids[example.supervised] if in_loss else example.input_ids)
                if token >= limit
            ]
            found = side.first_beyond(limit, in_loss)
            assert (found and (found.file_index, found.row, found.token)) == (wanted[0] if wanted else None)


def _store(examples: list[EncodedExample], generator: np.random.Generator, key: str) -> TokenStore:
    def build(writer: Any) -> None:
        for example in examples:
            in_loss = generator.random(len(example.input_ids)) < 0.5
            in_loss[:1] = False
            writer.add(StoredRow(EncodedExample(example.input_ids, in_loss, example.row), 0, 0, 0, False))

    return cached_store({"test": key}, build)


# Training.


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values()))[:40])
def test_a_row_is_named_before_training(
    base: Path, values: Callable[..., dict[str, Any]], method: dict[str, Any]
) -> None:
    run = values(base, pairs(*["fine"] * 7, f"{WORD} now", "fine", WORD), method)
    with pytest.raises(
        DataError, match=rf"rows\.jsonl: row 8 has the token {ROWS} \('<\|call\|>'\), .* has {ROWS} rows"
    ):
        lamina.train(run)
    assert not list(Path(run["output_dir"]).glob("checkpoints/*"))


@pytest.mark.parametrize("quantization", [{"bits": 4}, {"bits": 8}])
def test_a_row_is_named_on_a_quantized_base(
    base: Path, values: Callable[..., dict[str, Any]], quantization: dict[str, Any]
) -> None:
    pytest.importorskip("bitsandbytes")
    run = values(base, pairs("fine", WORD)) | {"quantization": quantization}
    with pytest.raises(DataError, match=rf"row 2 has the token {ROWS}"):
        lamina.train(run)


def test_rows_to_evaluate_on_count_and_rows_that_are_left_out_do_not(
    base: Path, values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps(pairs(WORD)[0]) + "\n")
    with pytest.raises(DataError, match=r"held_out\.jsonl: row 1 has the token"):
        lamina.train(values(base, pairs(*["fine"] * 4), eval=str(held_out)))
    text = [{"text": "x" * 80 + WORD}, *[{"text": "y" * 20}] * 9]
    assert lamina.train(values(base, pairs(*["fine"] * 9, "x" * 80 + WORD), max_length=64)).summary  # dropped
    assert lamina.train(values(base, text, overlong="cut", max_length=64)).summary  # in the part that is cut off
    with pytest.raises(DataError, match="row 1 has the token"):
        lamina.train(values(base, text, overlong="split", max_length=64))


def test_the_fixes_for_a_word_of_the_rows_work(
    base: Path, values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    run = values(base, pairs(*["fine"] * 7, WORD))
    with pytest.raises(DataError) as caught:
        lamina.train(run)
    (rows,) = re.findall(r"resize_token_embeddings\((\d+)\)", str(caught.value))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    model.resize_token_embeddings(int(rows))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "resized")
    assert lamina.train(run | {"model": str(tmp_path / "resized")}).summary
    assert lamina.train(values(base, pairs(*["fine"] * 7))).summary  # without the token


def test_the_fix_for_a_token_of_the_template_works(chatml: Path, values: Callable[..., dict[str, Any]]) -> None:
    rows = pairs(*["fine"] * 8)
    with pytest.raises(DataError, match="row 1 has the token 257") as caught:
        lamina.train(values(chatml, rows))
    (name,) = re.findall(r"data\.chat_template=(\w+)", str(caught.value))
    run = lamina.train(values(chatml, rows, chat_template=name))
    assert len(lamina.generate(run.path, ["say 1"], max_new_tokens=3)) == 1


def test_plain_text_needs_no_tokens_of_the_template(chatml: Path, values: Callable[..., dict[str, Any]]) -> None:
    """The run ends with an adapter that can be proven; only a chat with it is refused."""
    run = lamina.train(values(chatml, [{"text": f"some words {n}"} for n in range(8)]))
    loaded = lamina.load(run.path)
    assert loaded.certify().passed
    assert len(lamina.generate(loaded, ["say 1"])) == 1  # as it is, without the template
    with pytest.raises(DataError, match=r"the chat template writes it, .* data\.chat_template=plain"):
        lamina.generate(lamina.load(run.path, chat=True), ["say 1"])


def test_text_that_virtual_tokens_begin_with(base: Path, values: Callable[..., dict[str, Any]]) -> None:
    method = {"type": "prompt_tuning", "prompt_tuning_init": "TEXT", "num_virtual_tokens": 4}
    with pytest.raises(ConfigError, match=rf"prompt_tuning_init_text: .* has the token {ROWS}"):
        lamina.train(values(base, pairs(*["fine"] * 4), method | {"prompt_tuning_init_text": f"do {WORD}"}))
    assert lamina.train(values(base, pairs(*["fine"] * 4), method | {"prompt_tuning_init_text": "do it"})).summary


# Everything else that a text goes into.


def test_a_row_to_evaluate_on_is_named(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "tested.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs("fine", "fine", f"is {WORD}")))
    with pytest.raises(DataError, match=rf"tested\.jsonl: row 3 has the token {ROWS}"):
        lamina.evaluate(loaded, path)
    assert lamina.evaluate(loaded, path, max_rows=2).rows == 2


def test_a_prompt_is_refused(loaded: Loaded) -> None:
    with pytest.raises(DataError, match=rf"the prompt has the token {ROWS} .* leave it out of the prompt"):
        lamina.generate(loaded, ["fine", f"say {WORD}"])
    with pytest.raises(DataError, match="the prompt has the token"):
        list(stream(loaded, [Message("user", WORD)]))
    with pytest.raises(ConfigError, match=r"--system: .* the prompt has the token"):
        lamina.generate(loaded, ["fine"], system=WORD)
    assert len(lamina.generate(loaded, ["fine", "a longer one than that"], max_new_tokens=2)) == 2


def test_general_text_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "general.jsonl"
    texts = ("words and words and words", f"and more words and {WORD} and more")
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pieces = general_pieces(path, loaded.tokenizer, 64, 8)
    with pytest.raises(DataError, match=rf"general text, row 2, has the token {ROWS}"):
        general_loss(loaded, pieces, 2)
    assert torch.isfinite(torch.tensor(general_loss(loaded, pieces[:1], 2)))


def test_quantizing_names_the_row(base: Path, values: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from lamina.export.quantize import quantize

    run = values(base, pairs("fine", WORD)) | {"quantization": {"bits": 4}}
    with pytest.raises(DataError, match=rf"row 2 has the token {ROWS}"):
        quantize(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "data", "found"),
    [
        (pairs(*["fine"] * 8, WORD), {}, [9]),
        (pairs(*["fine"] * 8, "x" * 80 + WORD), {"max_length": 64}, []),
        (pairs(*["fine"] * 8, "x" * 80 + WORD), {"max_length": 64, "overlong": "cut"}, []),
        (pairs(*["fine"] * 8), {}, []),
    ],
)
def test_check_finds_what_training_stops_on(
    base: Path,
    values: Callable[..., dict[str, Any]],
    rows: list[dict[str, str]],
    data: dict[str, Any],
    found: list[int],
) -> None:
    run = values(base, rows, **data)
    finding = check(run).find("beyond_embedding")
    assert ([offender.place.row for offender in finding.examples] if finding else []) == found
    if found:
        assert finding and finding.severity == "error" and WORD in finding.examples[0].detail
        with pytest.raises(DataError, match=f"row {found[0]} has the token"):
            lamina.train(run)
    else:
        assert lamina.train(run).summary


def test_check_finds_tokens_of_the_template(chatml: Path, values: Callable[..., dict[str, Any]]) -> None:
    finding = check(values(chatml, pairs("fine", "fine"))).find("beyond_embedding")
    assert finding and finding.count == 2 and "<|im_start|>" in finding.examples[0].detail
    assert check(values(chatml, pairs("fine", "fine"), chat_template="plain")).find("beyond_embedding") is None
