"""The adapter that `verify` looks at has an effect, whatever its method begins with: one without hides errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lamina.config import load_config
from lamina.methods.shared.base import inject
from lamina.verification.paths import fill_adapter
from tests.support.architectures import build_architecture

EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_moe", {"type": "peft", "peft_type": "LORA", "r": 4, **EXPERTS}),
    ("qwen3_moe", {"type": "peft", "peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], **EXPERTS}),
    ("llama", {"type": "peft", "peft_type": "GRALORA", "r": 4, "gralora_k": 2}),
    ("llama", {"type": "prefix_tuning", "init_weights": "zero"}),
    ("llama", {"type": "lora", "r": 4}),
    ("llama", {"type": "ln_tuning"}),
    ("gpt2", {"type": "bitfit"}),
]


@pytest.mark.parametrize(("architecture", "method"), METHODS)
@torch.no_grad()
def test_a_filled_adapter_has_an_effect(architecture: str, method: dict[str, Any]) -> None:
    model, ids = build_architecture(architecture).eval().requires_grad_(False), torch.arange(3, 40)[None]
    before = model(ids).logits
    injection = inject(model, load_config({"data": {"train": "x"}, "method": method}).method, seed=0)
    fill_adapter(injection, seed=0)
    assert all(tensor.any() for tensor in injection.tensors().values())
    effect = float((model(ids).logits - before).abs().max() / before.abs().max())
    assert 1e-3 < effect < 10
