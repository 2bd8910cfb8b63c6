"""LayerNorm tuning: y = w o x / rms(x) (+ b, for a LayerNorm) with w and b trained, and everything else frozen.

Zhao et al. 2023, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", arXiv:2312.11420. A
norm layer is recognized by its parts: no child modules, and only one-dimensional parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lamina.config.methods.ln_tuning import LnTuningConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.linears import read_peft_fields
from lamina.methods.shared.targets import match_targets
from lamina.methods.shared.trained_copy import TrainedCopy, train_parameters, without_uncalled


class TunedNorm(TrainedCopy):
    """A norm layer with trained copies of its weight and bias, under peft's names for them."""

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {f"ln_tuning_layers.{name}": tensor for name, tensor in super().adapter_tensors().items()}


class LnTuning(Method):
    """Trains a float32 copy of each parameter of the selected norm layers."""

    draws = False

    def attach(self, model: PreTrainedModel, config: LnTuningConfig, seed: int) -> Injection:
        norms = {name: module for name, module in model.named_modules() if _is_norm(module)}
        if not norms:
            message = f"{type(model).__name__} has no norm layers with parameters, so there is nothing to train."
            raise ConfigError(Problem("method.type", message, "use another method"))
        if config.target_modules is None:
            names = list(without_uncalled(model, {name: [] for name in norms}))
        else:
            names = match_targets(model, config.target_modules, norms, "norm layer", "leave target_modules out for all")
        chosen = {name: [key for key, _ in norms[name].named_parameters()] for name in names}
        left_out = [] if config.target_modules is not None else [name for name in norms if name not in chosen]
        return Injection(model, config, train_parameters(model, chosen, TunedNorm), left_out)

    def peft_config(self, config: LnTuningConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return {
            "peft_type": "LN_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_ref,
            "target_modules": config.target_modules if isinstance(config.target_modules, str) else target_modules,
            "exclude_modules": None,
            "modules_to_save": None,
            "inference_mode": True,
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "LN_TUNING"

    def from_peft(self, peft_config: Mapping[str, Any]) -> LnTuningConfig:
        return read_peft_fields(LnTuningConfig, peft_config)


METHOD = LnTuning()


def _is_norm(module: nn.Module) -> bool:
    own = list(module.parameters())
    return bool(own) and not list(module.children()) and all(parameter.ndim == 1 for parameter in own)
