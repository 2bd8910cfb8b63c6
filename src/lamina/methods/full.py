"""Full fine-tuning: y = f(x; W) with every parameter W of the base trained.

The upper bound that the other methods are compared with. GaLore (`optim/_galore.py`) reduces its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lamina.config.methods.full import FullConfig
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.trained_copy import train_parameters, without_uncalled


class Full(Method):
    """Trains a float32 copy of each parameter; tied parameters, such as embedding and head, share a copy."""

    in_peft = False
    draws = False

    def attach(self, model: PreTrainedModel, config: FullConfig, seed: int) -> Injection:
        own = {
            name: [key for key, _ in module.named_parameters(recurse=False)] for name, module in model.named_modules()
        }
        everything = {name: keys for name, keys in own.items() if keys}
        chosen = without_uncalled(model, everything)
        left_out = [name for name in everything if name not in chosen]
        return Injection(model, config, train_parameters(model, chosen), left_out)

    def peft_config(self, config: FullConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return {"peft_type": "FULL", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_ref}

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "FULL"

    def from_peft(self, peft_config: Mapping[str, Any]) -> FullConfig:
        return FullConfig()


METHOD = Full()
