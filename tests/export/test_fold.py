"""Folding one weight after the other gives the files that folding the whole model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lamina.compute.weights import unpack
from lamina.compute.weights.packed import PackedLinear
from lamina.config import METHOD_CONFIGS
from lamina.config.quantization import QuantizationConfig
from lamina.errors import AdapterError
from lamina.export.fold import fold_and_save, fold_in
from lamina.methods.shared.base import Injection, inject
from lamina.models.fingerprint import fingerprint_base
from lamina.quantization.pack import pack_weight
from tests.support.models_zoo import build_model

pytest.importorskip("bitsandbytes.functional")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "some modules": ("lora", {"target_modules": ["q_proj", "down_proj"]}),
    "head and embedding apart": ("lora", {"target_modules": ["q_proj", "lm_head"]}),
    "head trained whole": ("lora", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "dora": ("dora", {}),
    "ia3": ("ia3", {}),
    "loha": ("loha", {}),
}


def packed_injection(method: str, settings: dict[str, Any]) -> Injection:
    """An adapter with random tensors on a packed model, the same one every time."""
    model = build_model("llama")
    config = QuantizationConfig()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            model.set_submodule(name, pack_weight(module.weight.detach(), config))
    model.requires_grad_(False)
    injection = inject(model, METHOD_CONFIGS[method].model_validate({"type": method, **settings}), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in injection.tensors().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return injection


@pytest.mark.parametrize("case", CASES)
def test_one_by_one_is_as_a_whole(case: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    parts.mkdir()
    first = packed_injection(*CASES[case])
    folded = fold_in(first)
    unpack(first.model)
    first.model.config._name_or_path = ""
    first.model.save_pretrained(whole)

    second = packed_injection(*CASES[case])
    assert fold_and_save(second, parts).modules == folded.modules == len(second.layers)
    assert fingerprint_base(parts) == fingerprint_base(whole)
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}
    # Nothing dense was kept on the way.
    assert not any(isinstance(module, PackedLinear) for module in second.model.modules())
    assert all(layer.frozen.base.weight.numel() == 0 for name, layer in second.layers.items() if "layers" in name)


def test_what_no_weight_can_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    injection = packed_injection("prefix_tuning", {})
    with pytest.raises(AdapterError, match="cannot be merged into the base's weights"):
        fold_and_save(injection, tmp_path)
    assert not list(tmp_path.iterdir())
    assert any(isinstance(module, PackedLinear) for module in injection.model.modules())
