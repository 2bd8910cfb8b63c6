"""LoRA: y = x W^T + b + s (x A^T) B^T with W frozen, A (r, in) random and B (out, r) zero at the start.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. s = lora_alpha / r, or
lora_alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv:2312.03732). The fused product is in `ops/lora_linear.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.config.methods.lora import LoraConfig
from lamina.errors import AdapterError, ConfigError, Problem
from lamina.methods.base import AdapterLinear, Injection, Method
from lamina.methods.targets import find_targets, replace_linears
from lamina.ops.linear_group import Detour
from lamina.ops.lora_linear import lora_linear
from lamina.quantization import FrozenLinear


class LoraLinear(AdapterLinear):
    """A frozen linear layer with a low-rank detour.

    Attributes:
        lora_A: (r, in_features), float32; uniform in +-1/sqrt(in_features), which is Kaiming's with a = sqrt(5).
        lora_B: (out_features, r), float32; zero, so that the layer starts as the base.
    """

    def __init__(
        self, frozen: FrozenLinear, r: int, scaling: float, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__(frozen)
        bound = frozen.in_features**-0.5
        # Drawn on the CPU: the same seed gives the same adapter whatever the device.
        init = torch.empty(r, frozen.in_features).uniform_(-bound, bound, generator=generator)
        device = self.weight.device
        self.lora_A = nn.Parameter(init.to(device))
        self.lora_B = nn.Parameter(torch.zeros(frozen.out_features, r, device=device))
        self.scaling = scaling
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        if not self.enabled:
            return self.frozen.matmul(x)
        dropout = self.dropout if self.training else 0.0
        return lora_linear(x, self.frozen, self.lora_A, self.lora_B, self.scaling, dropout)

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def detour(self) -> Detour | None:
        if not self.enabled:
            return None
        return Detour(self.lora_A, self.lora_B, self.scaling, self.dropout if self.training else 0.0)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}

    def fast_tensors(self) -> list[str]:
        return ["lora_B.weight"]

    def delta_weight(self) -> torch.Tensor:
        return self.scaling * (self.lora_B @ self.lora_A)


class Lora(Method):
    """Low-rank adaptation."""

    def attach(self, model: PreTrainedModel, config: LoraConfig, seed: int) -> Injection:
        names = find_targets(model, config.target_modules)
        generator = torch.Generator().manual_seed(seed)

        def build(frozen: FrozenLinear) -> LoraLinear:
            return LoraLinear(frozen, config.r, config.scaling, config.lora_dropout, generator)

        _check_rank(model, names, config.r)
        return Injection(model, config, replace_linears(model, names, build))

    def peft_config(self, config: LoraConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_ref,
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "lora_dropout": config.lora_dropout,
            "target_modules": config.target_modules if _is_regex(config.target_modules) else target_modules,
            "use_rslora": config.use_rslora,
            "use_dora": False,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
            "modules_to_save": None,
            "rank_pattern": {},
            "alpha_pattern": {},
            "inference_mode": True,
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "LORA"

    def from_peft(self, peft_config: Mapping[str, Any]) -> LoraConfig:
        unknown = sorted(
            key
            for key, value in peft_config.items()
            if key not in _READ_FIELDS and key not in _NO_EFFECT_FIELDS and not _is_off(key, value)
        )
        if unknown:
            settings = ", ".join(f"{key}={peft_config[key]!r}" for key in unknown)
            raise AdapterError(
                f"the adapter was trained with settings of peft that lamina's LoRA does not have: {settings}. "
                "Loading it without them would give another model. Fix: use it through peft."
            )
        return LoraConfig(
            r=peft_config["r"],
            lora_alpha=float(peft_config["lora_alpha"]),
            lora_dropout=float(peft_config.get("lora_dropout") or 0.0),
            target_modules=peft_config["target_modules"],
            use_rslora=bool(peft_config.get("use_rslora")),
        )


METHOD = Lora()

_READ_FIELDS = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "peft_type"}

# Fields of peft's LoraConfig that say where an adapter came from, or how training began, and change no result.
_NO_EFFECT_FIELDS = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}


def _is_off(key: str, value: Any) -> bool:
    return value in (None, False, {}, []) or (key == "bias" and value == "none")


def _is_regex(target_modules: str | list[str]) -> bool:
    return isinstance(target_modules, str) and target_modules != "all-linear"


def _check_rank(model: PreTrainedModel, names: list[str], r: int) -> None:
    for name in names:
        smallest = min(model.get_submodule(name).weight.shape)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        if r > smallest:
            raise ConfigError(
                Problem(
                    "method.r",
                    f"{r} is larger than the smaller side of {name} ({smallest}).",
                    f"use at most {smallest}",
                )
            )
