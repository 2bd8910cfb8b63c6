"""Full fine-tuning: y = f(x; W) with every parameter W of the base trained.

The upper bound that the other methods are compared with. GaLore, APOLLO and BAdam (`optim/`) reduce its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lamina.config.methods.full import FullConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.trained_copy import train_parameters, without_uncalled


class Full(Method):
    """Trains a float32 copy of each parameter; tied parameters, such as embedding and head, share a copy."""

    in_peft = False
    draws = False

    def attach(self, model: PreTrainedModel, config: FullConfig, seed: int) -> Injection:
        own = {
            name: [
                key for key, _ in module.named_parameters(recurse=False) if config.trains(f"{name}.{key}".lstrip("."))
            ]
            for name, module in model.named_modules()
        }
        everything = {name: keys for name, keys in own.items() if keys}
        if not everything:
            names = ", ".join(name for name, _ in list(model.named_parameters())[:3])
            message = f"no parameter matches {config.parameters}; the model's are {names}, ..."
            raise ConfigError(Problem("method.parameters", message, "correct the patterns, or remove them"))
        chosen = without_uncalled(model, everything)
        left_out = [name for name in everything if name not in chosen]
        return Injection(model, config, train_parameters(model, chosen), left_out)

    def peft_config(self, config: FullConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        some = {} if config.parameters is None else {"parameters": config.parameters}
        return {"peft_type": "FULL", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_ref, **some}

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "FULL"

    def from_peft(self, peft_config: Mapping[str, Any]) -> FullConfig:
        return FullConfig(parameters=peft_config.get("parameters"))


METHOD = Full()
