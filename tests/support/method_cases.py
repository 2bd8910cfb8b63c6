"""Adapters of every method with random tensors, in evaluation mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.methods.shared.base import Injection, find_method, inject
from tests.support.models_zoo import build_model

CASES: dict[str, dict[str, Any]] = {
    "lora": {"r": 3},
    "lora of many settings": {
        "type": "lora",
        "r": 5,
        "use_rslora": True,
        "bias": "all",
        "lora_dropout": 0.3,
        "rank_pattern": {"down_proj": 7},
    },
    "lora with whole modules": {"type": "lora", "r": 1, "modules_to_save": ["lm_head"], "lora_fa": True},
    "lora with a whole embedding": {"type": "lora", "r": 3, "modules_to_save": ["embed_tokens"]},
    "lora that begins in the base": {"type": "lora", "r": 3, "init_lora_weights": "pissa"},
    "lora with magnitudes and biases": {"type": "lora", "r": 3, "use_dora": True, "bias": "lora_only"},
    "dora": {"r": 3},
    "adalora": {"init_r": 5, "target_r": 3},
    "vera": {"r": 7},
    "loha": {"r": 1},
    "loha of a high rank": {"type": "loha", "r": 9},
    "lokr": {"r": 3},
    "ia3": {},
    "ln_tuning": {},
    "bitfit": {},
    "full": {},
    "bottleneck": {"bottleneck_size": 5},
    "bottleneck, houlsby": {"type": "bottleneck", "variant": "houlsby", "bottleneck_size": 3, "non_linearity": "gelu"},
    "bottleneck beside": {"type": "bottleneck", "variant": "parallel", "bottleneck_size": 3, "scaling": 0.7},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "p_tuning": {"num_virtual_tokens": 5},
    "p_tuning with an LSTM": {
        "type": "p_tuning",
        "num_virtual_tokens": 3,
        "encoder_reparameterization_type": "LSTM",
        "encoder_dropout": 0.5,
    },
    "prefix_tuning": {"num_virtual_tokens": 3},
    "prefix_tuning with a network": {"type": "prefix_tuning", "num_virtual_tokens": 5, "prefix_projection": True},
    "peft": {"peft_type": "GRALORA", "r": 4, "alpha": 8, "gralora_k": 2, "target_modules": "all-linear"},
}


def config_of(case: str) -> MethodConfig:
    values = {"type": case} | CASES[case]
    return METHOD_CONFIGS[values["type"]].model_validate(values)


def attached(case: str, shape: str) -> Injection:
    """An adapter with random tensors, in evaluation mode."""
    config = config_of(case)
    if find_method(config.type).needs_biases and shape != "gpt2":
        pytest.skip("the model has no biases")
    if case == "lora with whole modules" and shape != "llama":
        pytest.skip("the head is tied")
    if case == "lora with a whole embedding" and shape == "gpt2":
        pytest.skip("its embedding is called otherwise")
    injection = inject(build_model(shape, vocab_size=259), config, seed=0)
    injection.model.eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return injection
