"""Tokens that a run adds: their rows trained, saved with the tokenizer, loaded by peft and lamina, merged, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lamina
from lamina.adapters.adapter import read_adapter
from lamina.config import load_config
from lamina.errors import BaseMismatchError, ConfigError
from lamina.models.fingerprint import fingerprint_base
from lamina.models.load import load_base
from lamina.models.new_tokens import NewTokens
from lamina.runs.events import Event
from tests.support.models_zoo import build_model, build_tokenizer
from tests.support.peft_oracle import close
from tests.support.training import notes_into, settings

ADDED = {"add_tokens": ["<think>", "</think>"], "special_tokens": ["<|tool|>"]}
# The tokenizer has 259 tokens, so new ones begin there.
NEW = [259, 260, 261]


def base_folder(folder: Path, family: str, rows: int = 259) -> Path:
    path = folder / f"{family}-{rows}"
    if not path.is_dir():
        build_model(family, vocab_size=rows).save_pretrained(path)
        build_tokenizer().save_pretrained(path)
    return path


def config(folder: Path, family: str = "llama", rows: int = 259, **changes: Any) -> dict[str, Any]:
    lines = [{"prompt": f"a {i}", "completion": f"<think>b{i}</think> c"} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {**ADDED, **changes.pop("data", {})}
    values = settings(folder, base_folder(folder, family, rows), data=data, **changes)
    values["train"] |= {"max_steps": 4, "save_steps": 2, "eval_steps": 4}
    return values


def peft_logits(path: Path, base: Path, ids: torch.Tensor) -> torch.Tensor:
    """As a user of transformers and peft loads it, with the tokenizer beside the adapter."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, path).eval()(input_ids=ids).logits


@pytest.mark.parametrize(
    ("family", "rows", "indices"),
    [
        ("llama", 259, NEW),  # a tied head follows the embedding
        pytest.param("qwen2", 259, {"embed_tokens": NEW, "lm_head": NEW}, marks=pytest.mark.slow),
        pytest.param("llama", 300, NEW, marks=pytest.mark.slow),  # rows that no token had yet
    ],
)
def test_new_rows_are_trained_saved_loaded_and_merged(family: str, rows: int, indices: Any, tmp_path: Path) -> None:
    values = config(tmp_path, family, rows)
    notes: list[str] = []
    run = lamina.train(values, on_event=notes_into(notes))
    assert any("Added 3 tokens (ids 259 to 261" in note for note in notes)
    adapter = read_adapter(run.adapter)
    assert adapter.lock is not None
    assert adapter.settings["trainable_token_indices"] == indices
    assert adapter.lock.added_tokens == {"ordinary": ["<think>", "</think>"], "special": ["<|tool|>"]}
    assert adapter.lock.base_tensors == fingerprint_base(Path(values["model"])).tensors

    loaded = lamina.load(run.path, dtype="float32")
    assert loaded.certify().passed
    assert loaded.tokenizer.decode(NEW, skip_special_tokens=True) == "<think></think>"
    ids = torch.tensor([loaded.tokenizer("<think>hello</think> x<|tool|>").input_ids])
    assert set(NEW) <= set(ids[0].tolist())
    with torch.no_grad():
        ours = loaded.model(input_ids=ids).logits
    close(peft_logits(run.adapter, Path(values["model"]), ids), ours, "logits in peft")

    merged = lamina.merge(run.path, tmp_path / "merged")
    assert merged.certificate.passed
    whole = AutoModelForCausalLM.from_pretrained(merged.path, dtype=torch.float32)
    assert whole.config.vocab_size == max(rows, 262)
    assert AutoTokenizer.from_pretrained(merged.path).convert_tokens_to_ids("</think>") == 260
    with torch.no_grad():
        close(whole(input_ids=ids).logits, ours, "logits of the merged model")
    assert lamina.generate(run.path, ["a 3"], max_new_tokens=3)


def test_rows_that_were_there_stay_as_they_are(tmp_path: Path) -> None:
    values = config(tmp_path, "qwen2")
    run = lamina.train(values)
    base, loaded = build_model("qwen2", vocab_size=259), lamina.load(run.path, dtype="float32")
    for ends in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(base, ends)().weight, getattr(loaded.model, ends)().base.weight
        assert torch.equal(new[:259], old)
        start = new[259:]  # where training began: near the mean of the others
        assert float((start - old.mean(0)).norm()) < 0.1 * float(old.mean(0).norm() + old.norm(dim=1).mean())


def test_every_load_has_the_same_rows_and_the_callers_random_numbers_are_left(tmp_path: Path) -> None:
    path, tokens = base_folder(tmp_path, "llama"), NewTokens(("<a>",), ("<b>",))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = load_base(str(path), "float32", tokens=tokens)
    assert torch.equal(torch.rand(3), expected)
    second = load_base(str(path), "float32", tokens=tokens)
    weights = [base.model.get_input_embeddings().weight for base in (first, second)]
    assert torch.equal(*weights) and weights[0].shape[0] == 261
    assert first.added is not None and first.added.ids == (259, 260)
    assert not any(parameter.requires_grad for parameter in first.model.parameters())


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.slow), "qwen2"])
def test_whole_embeddings_are_trained_where_they_are_named(family: str, tmp_path: Path) -> None:
    both = {"modules_to_save": ["embed_tokens", "lm_head"]}
    method = {"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]} if family == "llama" else both
    values = config(tmp_path, family, method=method)
    run = lamina.train(values)
    loaded = lamina.load(run.path, dtype="float32")
    assert loaded.injection.config.trainable_token_indices is None
    assert loaded.adapter.tensors["base_model.model.model.embed_tokens.weight"].shape[0] == 262
    ids = torch.tensor([[5, *NEW, 7]])
    with torch.no_grad():
        close(peft_logits(run.adapter, Path(values["model"]), ids), loaded.model(input_ids=ids).logits, "logits")


class PulledPlug(BaseException):
    """Stands for a death of the process."""


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    def cut(event: Event) -> None:
        if event.kind == "checkpoint" and event.step == 2:
            raise PulledPlug

    whole = lamina.train(config(tmp_path))
    values = config(tmp_path, output_dir=str(tmp_path / "parts"))
    with pytest.raises(PulledPlug):
        lamina.train(values, cut)
    again = lamina.train(values, resume=True)
    assert read_adapter(again.adapter).digest == read_adapter(whole.adapter).digest


@pytest.mark.slow
def test_training_goes_on_from_an_adapter_with_its_tokens(tmp_path: Path) -> None:
    first = lamina.train(config(tmp_path))
    values = config(tmp_path, output_dir=str(tmp_path / "more"))
    values["method"] = {"type": "lora", "from": str(first.path)}
    for key in ADDED:
        values["data"].pop(key)
    second = lamina.train(values)
    assert read_adapter(second.adapter).lock.added_tokens == read_adapter(first.adapter).lock.added_tokens  # pyright: ignore[reportOptionalMemberAccess]
    values["data"]["add_tokens"] = ["<other>"]
    values["output_dir"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"data\.add_tokens: .* was trained with other tokens"):
        lamina.train(values)


def test_an_engine_over_the_bare_base_says_what_it_lacks(tmp_path: Path) -> None:
    values = config(tmp_path)
    run = lamina.train(values)
    with pytest.raises(BaseMismatchError, match=r"with the added tokens \['<think>', .*loaded without added tokens"):
        lamina.Engine(values["model"], {"a": run.path}, dtype="float32")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"type": "ia3"}, r"data\.add_tokens: adds tokens, and method 'ia3' would leave their rows untrained"),
        (
            {"type": "lora", "target_modules": ["q_proj", "embed_tokens"]},
            r"method\.target_modules: selects model\.embed",
        ),
        ({"type": "lora", "modules_to_save": ["embed_tokens"]}, r"method\.modules_to_save: trains .* whole, but"),
    ],
)
def test_rows_that_nothing_would_train_are_an_error(method: dict[str, Any], message: str, tmp_path: Path) -> None:
    values = config(tmp_path)
    values["method"] = method
    with pytest.raises(ConfigError, match=message):
        lamina.train(values)


def test_tokens_that_are_there_already_are_said(tmp_path: Path) -> None:
    notes: list[str] = []
    values = config(tmp_path, data={"add_tokens": ["a", "<new>"], "special_tokens": ["<|im_end|>"]})
    run = lamina.train(values, on_event=notes_into(notes))
    assert any("already has 'a', '<|im_end|>'" in note for note in notes)
    assert read_adapter(run.adapter).settings["trainable_token_indices"] == [259]


def test_a_token_named_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'<a>' more than once"):
        load_config({"data": {"train": "x", "add_tokens": ["<a>"], "special_tokens": ["<a>"]}})


def test_what_another_trainer_added_is_found_in_the_tokenizer_beside_its_adapter(tmp_path: Path) -> None:
    base = base_folder(tmp_path, "qwen2")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.add_tokens(["<|c|>"], special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    whole = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], r=4)
    model = peft.get_peft_model(model, whole)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 259, 260, 261, 9]])
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
    loaded = lamina.load(tmp_path / "adapter", model=str(base), dtype="float32")
    assert loaded.base.added is not None
    assert loaded.base.added.tokens == NewTokens(("<a>", "<b>"), ("<|c|>",))
    with torch.no_grad():
        close(loaded.model(input_ids=ids).logits, expected, "logits")
