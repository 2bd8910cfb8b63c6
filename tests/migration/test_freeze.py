"""LLaMA-Factory's `freeze`: the weights of some layers are trained, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from lamina.config import load_config
from lamina.errors import ConfigError, ModelError
from lamina.migration.translate import translate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    rows = [{"instruction": "q", "input": "", "output": "a"}]
    (tmp_path / "data" / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {"mine": {"file_name": "mine.json"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return tmp_path


def translated(folder: Path, **changes: Any) -> Any:
    values = {"stage": "sft", "do_train": True, "finetuning_type": "freeze", "dataset": "mine", **changes}
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    translation = translate(folder / "run.yaml")
    translation.check()
    return load_config(translation.values).method


@pytest.mark.parametrize(
    ("changes", "layers", "words"),
    [
        ({"freeze_trainable_layers": 1}, {1}, ()),
        ({"freeze_trainable_layers": -1}, {0}, ()),
        ({}, {0, 1}, ()),
        ({"freeze_trainable_layers": 1, "freeze_trainable_modules": "mlp,input_layernorm"}, {1}, ()),
        ({"freeze_trainable_layers": 1, "freeze_extra_modules": "embed_tokens,norm"}, {1}, ("embed_tokens", "norm")),
    ],
    ids=["last", "first", "default", "modules", "extra modules"],
)
def test_layers_and_modules(
    changes: dict[str, Any], layers: set[int], words: tuple[str, ...], folder: Path, model_folder: Path
) -> None:
    method = translated(folder, model_name_or_path=str(model_folder), **changes)
    modules = changes.get("freeze_trainable_modules", "").split(",")
    for name, _ in AutoModelForCausalLM.from_pretrained(model_folder).named_parameters():
        inside = any(f".{layer}.{module}" in name for layer in layers for module in modules)
        outside = name.count(".") == 2 and any(f".{word}." in name for word in words)
        assert method.trains(name) == (inside or outside), name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "Expecting property name"),
        (b"\xff", "can't decode"),
        (b"[]", "'list' object"),
        (b'{"text_config": 3}', "'int' object"),
        (b'{"num_hidden_layers": "2"}', "it has no num_hidden_layers, num_layers, n_layer"),
    ],
)
def test_a_config_that_does_not_say_the_number_is_named(content: bytes, reason: str, folder: Path) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"config\.json: does not say how many layers .*{reason}.*Fix: "):
        translated(folder, model_name_or_path="base")


def test_the_number_of_layers_must_be_known(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the last 2 is in the model's config\.json.*hf download some/model"):
        translated(folder, model_name_or_path="some/model")
    assert translated(folder, model_name_or_path="some/model", freeze_trainable_layers=-2).type == "full"


def test_no_layers_leave_the_extra_modules(folder: Path, model_folder: Path) -> None:
    given = {"model_name_or_path": str(model_folder), "freeze_trainable_layers": 0}
    with pytest.raises(ConfigError, match=r"no layer is trained: set freeze_trainable_layers"):
        translated(folder, **given)
    method = translated(folder, **given, freeze_extra_modules="norm")
    assert method.trains("model.norm.weight") and not method.trains("model.layers.1.mlp.up_proj.weight")


def expanded(folder: Path, layers: int) -> str:
    """The folder of a model with so many layers, as far as a translation reads it."""
    (folder / "pro").mkdir()
    (folder / "pro" / "config.json").write_text(json.dumps({"num_hidden_layers": layers}), encoding="utf-8")
    return str(folder / "pro")


def test_new_blocks_are_every_nth_layer(folder: Path) -> None:
    """As LLaMA-Factory's script adds them: a copy after every fourth of 32 layers makes 4, 9, ... 39 the new ones."""
    base = expanded(folder, 40)
    method = translated(folder, model_name_or_path=base, use_llama_pro=True, freeze_trainable_layers=8)
    trained = [n for n in range(40) if method.trains(f"model.layers.{n}.mlp.up_proj.weight")]
    assert trained == [4, 9, 14, 19, 24, 29, 34, 39]
    assert not method.trains("model.embed_tokens.weight")
    adapter = {"finetuning_type": "lora", "use_llama_pro": True, "freeze_trainable_layers": 8}
    assert translated(folder, model_name_or_path=base, **adapter).layers_to_transform == trained


@pytest.mark.parametrize("kind", ["freeze", "lora"])
def test_blocks_that_cannot_be_the_new_ones(kind: str, folder: Path) -> None:
    base, given = expanded(folder, 33), {"finetuning_type": kind, "use_llama_pro": True, "freeze_trainable_layers": 8}
    with pytest.raises(ConfigError, match=r"freeze_trainable_layers: 8 .* 33 layers are no multiple of it"):
        translated(folder, model_name_or_path=base, **given)
    with pytest.raises(ConfigError, match=r"the 8 new ones is in the model's config\.json.*hf download some/model"):
        translated(folder, model_name_or_path="some/model", **given)


def test_the_newer_form(folder: Path, model_folder: Path) -> None:
    values = {
        "model": str(model_folder),
        "model_class": "llm",
        "peft_config": {"name": "freeze", "freeze_trainable_layers": 1, "freeze_trainable_modules": "all"},
        "train_dataset": "data/mine.json",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    translation = translate(folder / "run.yaml")
    translation.check()
    method: Any = load_config(translation.values).method
    assert method.trains("model.layers.1.mlp.up_proj.weight") and not method.trains("model.layers.0.mlp.up_proj.weight")
