"""BitFit: y = x W^T + b with the bias b trained and W frozen; the biases of norms are trained too.

Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
arXiv:2106.10199.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from lamina.config.methods.bitfit import BitfitConfig
from lamina.errors import ConfigError, Problem
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.trained_copy import train_parameters, without_uncalled


class Bitfit(Method):
    """Trains a float32 copy of each bias of the base."""

    in_peft = False
    draws = False
    needs_biases = True

    def attach(self, model: PreTrainedModel, config: BitfitConfig, seed: int) -> Injection:
        own = {
            name: [key for key, _ in module.named_parameters(recurse=False) if key == "bias" or key.endswith("_bias")]
            for name, module in model.named_modules()
        }
        biased = {name: keys for name, keys in own.items() if keys}
        chosen = without_uncalled(model, biased)
        if not chosen:
            but = f" except in modules that do not run on a text (first: {next(iter(biased))})" if biased else ""
            message = (
                f"BitFit trains the biases of a model, and {type(model).__name__} has none{but}: neither its linear "
                "layers nor its norms add one."
            )
            raise ConfigError(Problem("method.type", message, "use ln_tuning or ia3, which are as small, or lora"))
        left_out = [name for name in biased if name not in chosen]
        return Injection(model, config, train_parameters(model, chosen), left_out)

    def peft_config(self, config: BitfitConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return {"peft_type": "BITFIT", "task_type": "CAUSAL_LM", "base_model_name_or_path": base_ref}

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "BITFIT"

    def from_peft(self, peft_config: Mapping[str, Any]) -> BitfitConfig:
        return BitfitConfig()


METHOD = Bitfit()
