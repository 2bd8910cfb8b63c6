"""Names of other libraries in lamina's configuration: each has a hint, and what the hint says works."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest
import yaml

from lamina.config import load_config, merge_overrides
from lamina.dialects.axolotl import AXOLOTL
from lamina.dialects.hints import hint_for
from lamina.dialects.llama_factory import LLAMA_FACTORY
from lamina.errors import ConfigError

DATA = {"data": {"train": "train.jsonl"}}


def defaults_of(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass with their defaults."""
    return {
        each.name: each.default
        if each.default is not dataclasses.MISSING
        else each.default_factory()
        if each.default_factory is not dataclasses.MISSING
        else None
        for each in dataclasses.fields(cls)
    }


def problems_of(values: dict[str, Any]) -> list[Any]:
    """The problems of a configuration; empty if it is valid."""
    try:
        load_config({**DATA, **values})
    except ConfigError as error:
        return list(error.problems)
    return []


def unexplained(section: str, names: dict[str, Any]) -> list[str]:
    """The names that are neither keys of lamina in the section nor have a hint."""
    found = []
    for name, value in names.items():
        unknown = [each for each in problems_of({section: {name: value}}) if "unknown key" in each.message]
        if any(not each.fix or each.fix.startswith("Did you mean") for each in unknown):
            found.append(name)
    return found


def test_every_name_of_training_arguments_has_a_hint() -> None:
    from transformers import TrainingArguments

    assert unexplained("train", defaults_of(TrainingArguments)) == []


@pytest.mark.parametrize("name", ["SFTConfig", "DPOConfig", "RewardConfig", "ModelConfig", "ScriptArguments"])
def test_every_name_of_trl_has_a_hint(name: str) -> None:
    trl = pytest.importorskip("trl")
    try:
        cls = getattr(trl, name)
    except (AttributeError, ImportError):
        pytest.skip(f"trl has no {name}")
    assert unexplained("train", defaults_of(cls)) == []


def test_every_name_of_lora_config_has_a_hint() -> None:
    from peft import LoraConfig

    assert unexplained("method", defaults_of(LoraConfig)) == []


def test_every_name_of_bits_and_bytes_config_has_a_hint() -> None:
    from transformers import BitsAndBytesConfig

    names = {
        name: each.default
        for name, each in inspect.signature(BitsAndBytesConfig.__init__).parameters.items()
        if name not in ("self", "kwargs")
    }
    assert unexplained("quantization", names) == []


@pytest.mark.parametrize("table", [AXOLOTL, LLAMA_FACTORY], ids=["axolotl", "llama-factory"])
def test_every_name_in_the_tables_has_a_hint(table: dict[str, Any]) -> None:
    assert unexplained("train", dict.fromkeys(table)) == []


# What people write, where they write it, and what it must have become.
WRITTEN = [
    ({"train": {"max_seq_length": 2048}}, {"data": {"max_length": 2048}}),
    ({"train": {"packing": True}}, {"data": {"packing": True}}),
    ({"max_length": 512}, {"data": {"max_length": 512}}),
    ({"load_in_4bit": True}, {"quantization": {"bits": 4}}),
    ({"quantization": {"load_in_8bit": True}}, {"quantization": {"bits": 8}}),
    ({"quantization": {"bits": 4, "bnb_4bit_quant_type": "fp4"}}, {"quantization": {"quant_type": "fp4"}}),
    ({"train": {"optim": "adamw_torch_fused"}}, {"train": {"optim": "adamw_torch"}}),
    ({"train": {"optim": "adamw_bnb_8bit"}}, {"train": {"optim": "adamw_8bit"}}),
    ({"report_to": "wandb"}, {"train": {"report_to": ["wandb"]}}),
    ({"train": {"warmup_steps": 0.1}}, {"train": {"warmup_ratio": 0.1}}),
    ({"method": {"type": "qlora"}}, {"method": {"type": "lora"}, "quantization": {"bits": 4}}),
    ({"method": {"type": "lora+"}}, {"method": {"type": "lora"}, "train": {"loraplus_lr_ratio": 16.0}}),
    ({"method": {"type": "adapters"}}, {"method": {"type": "bottleneck"}}),
    ({"method": {"type": "prefix-tuning"}}, {"method": {"type": "prefix_tuning"}}),
    ({"method": {"lora_rank": 8}}, {"method": {"r": 8}}),
    ({"lora_r": 8}, {"method": {"r": 8}}),
    ({"micro_batch_size": 2}, {"train": {"per_device_train_batch_size": 2}}),
    ({"sequence_len": 4096}, {"data": {"max_length": 4096}}),
    ({"val_set_size": 0.05}, {"data": {"eval": 0.05}}),
    ({"train": {"group_by_length": True}}, {"data": {"group_by_length": True, "packing": False}}),
]


@pytest.mark.parametrize(("given", "wanted"), WRITTEN, ids=[str(given) for given, _ in WRITTEN])
def test_what_a_hint_says_works(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    (problem,) = problems_of(given)
    said = [yaml.safe_load(text) for text in re.findall(r"`([^`]*)`", problem.fix)]
    merged: dict[str, Any] = {}
    for part in said:
        for section, inner in part.items():
            merged.setdefault(section, {}).update(inner)
    assert merged == wanted
    for section, inner in merged.items():
        merged[section] = {**DATA.get(section, {}), **inner}
    load_config({**DATA, **merged})


REMOVED = [
    ({"train": {"bf16": True}}, "bfloat16"),
    ({"train": {"save_strategy": "steps"}}, "save_steps"),
    ({"train": {"report_to": "comet_ml"}}, "plug-in"),
    ({"train": {"gradient_checkpointing_kwargs": {"use_reentrant": False}}}, "recomputes"),
    ({"flash_attention": True}, "attention"),
    ({"train": {"neftune_noise_alpha": 5}}, "NEFTune"),
]


@pytest.mark.parametrize(("given", "word"), REMOVED, ids=[str(given) for given, _ in REMOVED])
def test_a_hint_says_why_a_setting_is_not_needed(given: dict[str, Any], word: str) -> None:
    (problem,) = problems_of(given)
    assert problem.fix.startswith("remove it: ")
    assert word in problem.fix


def test_the_allowed_names_are_listed_once() -> None:
    problems = problems_of({"train": {"bf16": True, "fp16": False, "tf32": True}})
    assert [problem.message.count("learning_rate") for problem in problems] == [1, 0, 0]
    assert all(problem.fix for problem in problems)


def test_a_name_that_nobody_has_gets_the_nearest() -> None:
    assert hint_for("train.learning_rat", 1e-4) == ""
    (problem,) = problems_of({"train": {"learning_rat": 1e-4}})
    assert problem.fix == "Did you mean 'learning_rate'?"


def test_foreign_files_are_recognized(tmp_path: Any) -> None:
    path = tmp_path / "axolotl.yaml"
    path.write_text("base_model: x\ndatasets: [{path: a.jsonl, type: alpaca}]\nadapter: lora\n")
    with pytest.raises(ConfigError, match=r"configuration of Axolotl.*lamina import"):
        load_config(path)


def test_overrides_are_hinted_too() -> None:
    with pytest.raises(ConfigError, match=r"data: \{max_length: 2048\}"):
        load_config(merge_overrides(DATA, ["train.max_seq_length=2048"]))


def test_no_hint_says_to_write_what_was_written() -> None:
    """`beta` belongs to some losses and not to others; where it is unknown, writing it again helps nobody."""
    assert "beta" not in hint_for("loss.beta", 1.0)
