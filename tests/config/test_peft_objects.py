"""Configuration objects of peft's as `method`: lamina's own method where it has all that is set, else `type: peft`."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import peft
import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from lamina.config import METHOD_CONFIGS, load_config
from lamina.config.peft_objects import (
    is_peft_config,
    method_config_from_lora,
    method_config_from_peft,
    plain,
)
from lamina.errors import ConfigError
from lamina.methods.shared.base import find_method, inject
from tests.support.peft_pairs import build


def settings_of(config: peft.PeftConfig) -> dict[str, Any]:
    """The settings, once as they are and once through a whole configuration."""
    settings = method_config_from_peft(config)
    rest: dict[str, Any] = {"data": {"train": "rows.jsonl"}}
    if settings.get("init_lora_weights") == "loftq":
        rest["quantization"] = {"bits": 4}
    elif config.task_type == "SEQ_CLS":
        assert load_config({**rest, "method": config}).loss.type == "classification"
    loaded = load_config({**rest, "method": config})
    again = load_config({**rest, "method": settings})
    assert loaded == again == load_config(loaded)
    return settings


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (peft.LoraConfig(), {"type": "lora", "r": 8, "lora_alpha": 8}),
        (
            peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=7, target_modules=["v_proj", "q_proj"]),
            {"type": "lora", "r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]},
        ),
        (peft.LoraConfig(use_dora=True, bias="all"), {"type": "lora", "use_dora": True, "bias": "all"}),
        (peft.LoraConfig(target_modules="all-linear"), {"type": "lora", "target_modules": "all-linear"}),
        (peft.LoraConfig(modules_to_save=[], exclude_modules=[]), {"type": "lora"}),
        (peft.LoraConfig(lora_bias=True), {"type": "peft", "peft_type": "LORA", "lora_bias": True}),
        (
            peft.LoraConfig(trainable_token_indices=[3, 5], target_modules=["q_proj"]),
            {"trainable_token_indices": [3, 5], "target_modules": ["q_proj"]},
        ),
        (peft.LoraConfig(task_type="SEQ_CLS", r=5), {"type": "lora", "r": 5, "task_type": "SEQ_CLS"}),
        (peft.LoraConfig(init_lora_weights="mica"), {"type": "peft", "init_lora_weights": "mica"}),
        (
            peft.LoraConfig(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.5)),
            {"type": "lora", "init_lora_weights": "eva", "eva_config": {"rho": 1.5}},
        ),
        (
            peft.LoraConfig(init_lora_weights="loftq", loftq_config=peft.LoftQConfig(loftq_iter=2)),
            {"type": "lora", "init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 2}},
        ),
        (peft.AdaLoraConfig(init_r=6, target_r=3, total_step=20), {"type": "adalora", "init_r": 6, "total_step": 20}),
        (peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), {"type": "ia3", "feedforward_modules": []}),
        (
            peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], modules_to_save=["lm_head"]),
            {"type": "peft", "peft_type": "IA3", "modules_to_save": ["lm_head"]},
        ),
        (peft.LoHaConfig(r=3), {"type": "loha", "r": 3, "alpha": 8}),
        (peft.LoKrConfig(r=3, rank_dropout=0.1), {"type": "peft", "peft_type": "LOKR", "rank_dropout": 0.1}),
        (peft.VeraConfig(target_modules=["q_proj"]), {"type": "vera", "r": 256}),
        (peft.LNTuningConfig(), {"type": "ln_tuning"}),
        (peft.PromptTuningConfig(num_virtual_tokens=5), {"type": "prompt_tuning", "num_virtual_tokens": 5}),
        (peft.PrefixTuningConfig(num_virtual_tokens=5), {"type": "prefix_tuning", "num_virtual_tokens": 5}),
        (peft.PromptEncoderConfig(num_virtual_tokens=5), {"type": "p_tuning", "num_virtual_tokens": 5}),
        (peft.HRAConfig(r=4, target_modules=["q_proj"]), {"type": "peft", "peft_type": "HRA", "r": 4}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, peft.PeftConfig) else "",
)
def test_an_object_gives_its_settings(config: peft.PeftConfig, expected: dict[str, Any]) -> None:
    settings = settings_of(config)
    assert settings.items() >= expected.items()
    assert "inference_mode" not in settings
    assert not settings.keys() & {"peft_version", "runtime_config"}


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"]),
        peft.LoraConfig(r=3, target_modules=r".*layers\.0.*proj", rank_pattern={"q_proj": 2}, use_rslora=True),
        peft.LoraConfig(r=3, target_modules=["q_proj"], trainable_token_indices=[2, 9]),
        peft.LoHaConfig(r=3, target_modules=["q_proj", "down_proj"], layers_to_transform=[1]),
        peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.LNTuningConfig(target_modules=["input_layernorm"]),
    ],
    ids=lambda config: type(config).__name__,
)
def test_the_adapter_is_that_of_peft(config: peft.PeftConfig) -> None:
    method = load_config({"data": {"train": "rows.jsonl"}, "method": config}).method
    model = build("llama")
    find_method(method.type).check(model, method)
    ours = {name: tensor.shape for name, tensor in inject(model, method, 0).saved_tensors().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: Any = peft.get_peft_model(build("llama"), config)
        saved = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    assert ours == {name: tensor.shape for name, tensor in saved.items()}


@pytest.mark.parametrize("name", [name for name in METHOD_CONFIGS if hasattr(peft.PeftType, name.upper())])
def test_every_default_of_peft_is_taken_in_a_section(name: str) -> None:
    own = METHOD_CONFIGS[name]
    for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name.upper())]):
        made = field.default_factory
        default = plain(field.default if made is dataclasses.MISSING else made())
        if dataclasses.is_dataclass(default):
            default = dataclasses.asdict(default)
        if field.name in own.model_fields or (name, field.name) == ("adalora", "r"):  # a rank that AdaLoRA ignores
            continue
        value = name.upper() if field.name == "peft_type" else default
        method: dict[str, Any] = {"type": name, field.name: value}
        assert load_config({"data": {"train": "rows.jsonl"}, "method": method}).method == own.model_validate(
            {"type": name}
        ), field.name


def test_another_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method\.task_type: 'SEQ_2_SEQ_LM': lamina trains causal"):
        load_config({"data": {"train": "x.jsonl"}, "method": peft.LoraConfig(task_type="SEQ_2_SEQ_LM")})


def test_what_a_method_cannot_take_is_said_by_its_field() -> None:
    config = peft.LoraConfig(r=8, target_modules=["q_proj"], lora_dropout=1.5)
    assert is_peft_config(config)
    assert not is_peft_config({"type": "lora"})
    assert method_config_from_peft(config)["lora_dropout"] == 1.5


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"r": 0},
        {"layers_to_transform": 0},
        {"layers_to_transform": [0], "layers_pattern": "layers"},
        {"lora_bias": True},
        {"target_modules": []},
        {"target_modules": {"v_proj", "q_proj"}, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 1}},
        {"exclude_modules": ".*v_proj", "modules_to_save": ["lm_head"], "bias": "all", "use_rslora": True},
        {"layer_replication": [(0, 2), (1, 2)]},
        {"init_lora_weights": False, "fan_in_fan_out": True, "inference_mode": True, "peft_version": "0.1"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 2}},
        {"task_type": "SEQ_CLS", "ensure_weight_tying": True, "trainable_token_indices": [1]},
        {"lora_alpha": 0, "lora_dropout": 0, "use_dora": True},
    ],
    ids=str,
)
def test_fields_alone_are_what_the_object_is(given: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = method_config_from_peft(peft.LoraConfig(**given))
    assert method_config_from_lora(given) == expected
    assert method_config_from_lora({"peft_type": "LORA", **given}, ["q_proj"]) == method_config_from_peft(
        peft.LoraConfig(**given), ["q_proj"]
    )
