"""Gain: y = g (x W^T + b) with one trained number g per layer, 1 at the start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.weights import FrozenLinear
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.targets import find_targets, replace_linears
from lamina_example.gain_config import GainConfig


class GainLinear(AdapterLinear):
    """A frozen linear layer whose output is scaled by one number."""

    def __init__(self, frozen: FrozenLinear) -> None:
        super().__init__(frozen)
        self.gain = nn.Parameter(torch.ones(1, device=self.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        y = self.frozen.matmul(x)
        return (y * self.gain).to(x.dtype) if self.enabled else y

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {"gain": self.gain}

    def delta_weight(self) -> torch.Tensor:
        return (self.gain - 1) * self.frozen.weight(torch.float32)

    def delta_bias(self) -> torch.Tensor | None:
        return None if self.bias is None else (self.gain - 1) * self.bias.float()


class Gain(Method):
    """Attaches `GainLinear`."""

    in_peft = False
    draws = False

    def attach(self, model: PreTrainedModel, config: GainConfig, seed: int) -> Injection:
        names = find_targets(model, config.target_modules)
        return Injection(model, config, replace_linears(model, names, GainLinear))

    def peft_config(self, config: GainConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        names = {"target_modules": target_modules, "base_model_name_or_path": base_ref}
        return {"peft_type": "GAIN", "task_type": "CAUSAL_LM", **names}

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "GAIN"

    def from_peft(self, peft_config: Mapping[str, Any]) -> GainConfig:
        return GainConfig(target_modules=peft_config["target_modules"])


METHOD = Gain()
