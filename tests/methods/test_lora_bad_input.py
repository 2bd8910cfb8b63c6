"""LoRA's settings that cannot be, or that would do nothing: each is an error that names the field and the reason."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from lamina.compute.weights.packed import FourBitLinear
from lamina.config import load_config
from lamina.config.methods.lora import LoraConfig
from lamina.errors import AdapterError, ConfigError
from lamina.methods.lora import METHOD
from lamina.methods.shared.base import find_method, inject
from tests.support.lora_cases import attached
from tests.support.models_zoo import build_model

COMBINATIONS: list[tuple[dict[str, Any], str]] = [
    ({"init_lora_weights": "pisa"}, r"init_lora_weights: 'pisa' is not one of true, false, gaussian"),
    ({"init_lora_weights": "eva", "eva_config": {"rho": 0.5}}, r"eva_config.rho: got 0.5; .* greater than or equal"),
    ({"init_lora_weights": "eva", "eva_config": {"roh": 2}}, "unknown key; .* Did you mean 'rho'"),
    ({"eva_config": {"rho": 2}}, "eva_config has no effect without init_lora_weights: eva"),
    ({"init_lora_weights": "pissa", "lora_fa": True}, "lora_fa freezes A, but init_lora_weights: pissa"),
    (
        {"init_lora_weights": "orthogonal", "r": 5},
        r"orthogonal gives half of the rank to each factor, so the rank cannot be odd \(5\)",
    ),
    ({"init_lora_weights": "orthogonal", "rank_pattern": {"q_proj": 3}}, r"the rank cannot be odd \(3\)"),
    ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "has no effect with a regular expression"),
    ({"layers_pattern": "layers"}, "layers_pattern has no effect without layers_to_transform"),
    ({"rank_pattern": {"(": 3}}, r"rank_pattern: '\(' is not a regular expression"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj: got 0"),
    ({"exclude_modules": "*"}, r"exclude_modules: '\*' is not a regular expression"),
    ({"bias": "some"}, "bias: 'some' is not one of 'none', 'all' or 'lora_only'"),
]


@pytest.mark.parametrize(("method", "reason"), COMBINATIONS)
def test_impossible_settings(method: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config({"data": {"train": "x.jsonl"}, "method": {"type": "lora", **method}})


# What cannot be put on a model at all.
UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"exclude_modules": ".*"}, "of the 14 modules .* leave none"),
    ({"modules_to_save": ["layers"]}, "of the 14 modules .* leave none"),
    ({"modules_to_save": ["yers.0"]}, "selects model.layers.0, which holds model.layers.0.self_attn.q_proj"),
    ({"modules_to_save": ["proj"]}, "selects model.layers.0.self_attn.q_proj, which gets LoRA"),
    ({"modules_to_save": ["mlp", "act_fn"]}, "holds model.layers.0.mlp.act_fn"),
    ({"modules_to_save": ["act_fn"]}, "act_fn, which has no weights"),
    (
        {"init_lora_weights": "pissa", "r": 17, "target_modules": ["k_proj"]},
        r"17 is larger than the smaller side of .*k_proj \(16\)",
    ),
]


@pytest.mark.parametrize(("method", "reason"), UNFIT)
def test_settings_that_do_not_fit_the_model(method: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        attached("llama", **method)


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        (["k_proj"], r"selects model.layers.0.self_attn.k_proj, but model.layers.0.self_attn.k_proj is stored packed"),
        (["mlp"], r"modules_to_save: it selects model.layers.0.mlp, but model.layers.0.mlp.gate_proj is stored packed"),
    ],
)
def test_packed_weights_are_not_trained_in_part(modules: list[str], reason: str) -> None:
    """Qwen2 has biases, which alone could be trained."""
    model = build_model("qwen2")
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            model.set_submodule(name, FourBitLinear.pack(module))
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=modules)
    with pytest.raises(ConfigError, match=reason):
        inject(model, config, seed=0)


# What would do nothing in training; an adapter of peft's that has it can be loaded all the same.
USELESS: list[tuple[dict[str, Any], str]] = [
    ({"rank_pattern": {"q_prj": 3}}, r"method.rank_pattern: 'q_prj' matches no module .* Did you mean 'q_proj'"),
    ({"alpha_pattern": {"lm_head": 3}}, "method.alpha_pattern: 'lm_head' matches no module with LoRA"),
    ({"layers_to_transform": [0, 2]}, "method.layers_to_transform: layer 2 has no module"),
    ({"layers_to_transform": [0], "layers_pattern": "h"}, "leave none"),
    ({"exclude_modules": ["q_prj"]}, "method.exclude_modules: 'q_prj' matches no module"),
    ({"exclude_modules": ".*z_proj"}, "method.exclude_modules: '.*z_proj' matches no module"),
    ({"modules_to_save": ["score"]}, "method.modules_to_save: no module's name ends in 'score'"),
    ({"bias": "all"}, "method.bias: 'all' trains biases, but LlamaForCausalLM have none"),
    ({"bias": "lora_only"}, "method.bias: 'lora_only' trains biases, but the adapted layers have none"),
    ({"rank_pattern": {"k_proj": 17}}, r"method.r: 17 is larger than .*k_proj \(16\)"),
]


@pytest.mark.parametrize(("method", "reason"), USELESS)
def test_settings_that_would_do_nothing(method: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        METHOD.prepare(attached("llama", **method), [])


@pytest.mark.parametrize(
    ("method", "lacks"),
    [
        ("lora", "r, lora_alpha, target_modules"),
        ("ln_tuning", "target_modules"),
        ("prompt_tuning", "num_virtual_tokens"),
        ("prefix_tuning", "num_virtual_tokens"),
        ("p_tuning", "num_virtual_tokens"),
    ],
)
def test_a_configuration_of_pefts_that_lacks_fields_is_one_clear_error(method: str, lacks: str) -> None:
    with pytest.raises(AdapterError, match=f"its adapter_config.json lacks {lacks}. Fix"):
        find_method(method).from_peft({"base_model_name_or_path": "base"})
