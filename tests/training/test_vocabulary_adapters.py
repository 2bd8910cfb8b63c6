"""Adapters on the embedding and the head, end to end: trained, loaded, answered for by an engine, merged, quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.chat.message import Message
from lamina.engine.generator import Request
from lamina.engine.sampling import Sampling
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.training import settings

CASES: list[tuple[str, dict[str, Any]]] = [
    ("qwen2", {"target_modules": ["v_proj", "embed_tokens", "lm_head"]}),
    ("llama", {"target_modules": ["v_proj", "embed_tokens"], "ensure_weight_tying": True}),
    ("llama", {"target_modules": ["v_proj"], "trainable_token_indices": [5, 9, 70]}),
    ("qwen2", {"target_modules": ["v_proj"], "trainable_token_indices": {"embed_tokens": [5, 70], "lm_head": [9]}}),
]


def config(folder: Path, family: str, method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    base = folder / "base"
    build_model(family, vocab_size=259).save_pretrained(base)
    build_tokenizer().save_pretrained(base)
    values = settings(folder, base, **changes)
    values["method"] = {"type": "lora", "r": 4, **method}
    values["train"] |= {"max_steps": 4, "eval_steps": 4, "save_steps": 4}
    return values


@pytest.mark.parametrize(
    ("family", "method"), [CASES[0], *(pytest.param(*c, marks=pytest.mark.slow) for c in CASES[1:])]
)
def test_an_engine_answers_as_the_adapter_does(family: str, method: dict[str, Any], tmp_path: Path) -> None:
    values = config(tmp_path, family, method)
    run = lamina.train(values)
    loaded = lamina.load(run.path, dtype="float32")
    assert loaded.certify().passed
    (expected,) = lamina.generate(loaded, ["red green 1"], max_new_tokens=6)
    with lamina.Engine(values["model"], {"a": run.path}, dtype="float32") as engine:
        (facts,) = engine.loaded()
        assert facts.certificate is not None and facts.certificate.passed
        asked = Request([Message("user", "red green 1")], adapter="a", sampling=Sampling(max_tokens=6))
        (answer,) = engine.generate([asked])
    assert answer.text == expected
    assert lamina.merge(run.path, tmp_path / "merged").certificate.passed


@pytest.mark.slow
def test_a_quantized_base_keeps_its_ends_and_they_are_adapted(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    method = {"target_modules": ["v_proj", "embed_tokens", "lm_head"]}
    values = config(tmp_path, "qwen2", method, data={"add_tokens": []})
    run = lamina.train({**values, "quantization": {"bits": 4, "blocksize": 32}})
    loaded = lamina.load(run.path)
    assert loaded.certify().passed
    with torch.no_grad(), loaded.injection.disabled():
        bare = loaded.model(input_ids=torch.tensor([[5, 9, 70]])).logits
    with torch.no_grad():
        assert not torch.equal(loaded.model(input_ids=torch.tensor([[5, 9, 70]])).logits, bare)


def test_new_tokens_on_a_quantized_base(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    values = config(tmp_path, "qwen2", {"target_modules": ["v_proj"]}, data={"add_tokens": ["<a>", "<b>"]})
    run = lamina.train({**values, "quantization": {"bits": 4, "blocksize": 32}})
    loaded = lamina.load(run.path)
    assert loaded.certify().passed and loaded.base.added is not None and loaded.base.added.ids == (259, 260)
    assert lamina.merge(run.path, tmp_path / "merged").certificate.passed
