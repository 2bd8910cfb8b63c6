"""LoHa: y = x W^T + b + s x ((W1a W1b) * (W2a W2b))^T, the elementwise product of two low-rank products.

Hyeon-Woo et al. 2021, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
arXiv:2108.06098, with the name and format of LyCORIS (Yeh et al. 2023, arXiv:2309.14859). s = alpha / r.

The elementwise product of two matrices of rank r has rank at most r^2, with known factors: row (p, q) of the right
factor is W1b[p] * W2b[q], and column (p, q) of the left one is W1a[:, p] * W2a[:, q]. If that costs less than a product
with the full matrix, the layer is computed as a low-rank path; else the matrix is built, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.ops.delta_linear import Hadamard, delta_linear
from lamina.compute.ops.lora_linear import lora_linear
from lamina.compute.ops.row_forms import LowRank, RowForm
from lamina.compute.weights import FrozenLinear
from lamina.config.methods.loha import LoHaConfig
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.linears import (
    adapted_linears,
    check_rank,
    peft_fields,
    read_peft_fields,
    uniform,
    zeros,
)
from lamina.methods.shared.targets import find_targets, replace_linears


class LoHaLinear(AdapterLinear):
    """A frozen linear layer plus a Hadamard product of two low-rank products.

    Attributes:
        hada_w1_a: (out_features, r), float32; uniform in +-1/sqrt(r).
        hada_w1_b: (r, in_features), float32; uniform in +-1/sqrt(in_features).
        hada_w2_a: (out_features, r), float32; initialized like `hada_w1_a`.
        hada_w2_b: (r, in_features), float32; zero, so that the layer starts as the base.
    """

    def __init__(self, frozen: FrozenLinear, r: int, scaling: float, generator: torch.Generator) -> None:
        super().__init__(frozen)
        device, size_in, size_out = self.weight.device, frozen.in_features, frozen.out_features
        self.hada_w1_a = nn.Parameter(uniform((size_out, r), generator).to(device))
        self.hada_w1_b = nn.Parameter(uniform((r, size_in), generator).to(device))
        self.hada_w2_a = nn.Parameter(uniform((size_out, r), generator).to(device))
        self.hada_w2_b = zeros((r, size_in), device)
        self.scaling = scaling
        self._is_low_rank = r**2 * (size_in + size_out) <= size_in * size_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        if not self.enabled:
            return self.frozen.matmul(x)
        if self._is_low_rank:
            path = self._path()
            return lora_linear(x, self.frozen, path.A, path.B, path.scaling)
        factors = (self.scaling * self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)
        return delta_linear(x, self.frozen, Hadamard, factors)

    @property
    def rank(self) -> int | None:
        return self.hada_w1_b.shape[0] ** 2 if self._is_low_rank else None

    def low_rank_path(self) -> LowRank | None:
        return self._path() if self.enabled and self._is_low_rank else None

    def row_forms(self) -> tuple[RowForm, ...]:
        return (self._path(),) if self._is_low_rank else super().row_forms()

    def _path(self) -> LowRank:
        A = self.hada_w1_b[:, None, :] * self.hada_w2_b[None, :, :]
        B = self.hada_w1_a[:, :, None] * self.hada_w2_a[:, None, :]
        return LowRank(A.flatten(0, 1), B.flatten(1, 2), self.scaling, 0.0)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {
            "hada_w1_a": self.hada_w1_a,
            "hada_w1_b": self.hada_w1_b,
            "hada_w2_a": self.hada_w2_a,
            "hada_w2_b": self.hada_w2_b,
        }

    def delta_weight(self) -> torch.Tensor:
        return self.scaling * (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)


class LoHa(Method):
    """Low-rank Hadamard product."""

    peft_takes_conv1d = False

    def attach(self, model: PreTrainedModel, config: LoHaConfig, seed: int) -> Injection:
        names = find_targets(model, config.target_modules, config.narrowest)
        generator = torch.Generator().manual_seed(seed)

        def build(frozen: FrozenLinear) -> LoHaLinear:
            return LoHaLinear(frozen, config.r, config.scaling, generator)

        return Injection(model, config, replace_linears(model, names, build))

    def prepare(self, injection: Injection, documents: Sequence[torch.Tensor]) -> Injection:
        """Checks the rank, which matters only before training.

        Raises:
            ConfigError: The rank is too large.
        """
        check_rank("method.r", injection.config, adapted_linears(injection))
        return injection

    def peft_config(self, config: LoHaConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return peft_fields("LOHA", config.target_modules, target_modules, base_ref) | {
            "r": config.r,
            "alpha": config.alpha,
            "rank_dropout": 0.0,
            "module_dropout": 0.0,
            "use_effective_conv2d": False,
            "init_weights": True,
            "rank_pattern": {},
            "alpha_pattern": {},
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "LOHA"

    def from_peft(self, peft_config: Mapping[str, Any]) -> LoHaConfig:
        return read_peft_fields(LoHaConfig, peft_config, _NO_EFFECT_FIELDS)


METHOD = LoHa()

# Fields of the initialization, of dropout in training, and of convolutions.
_NO_EFFECT_FIELDS = {"init_weights", "module_dropout", "rank_dropout", "use_effective_conv2d"}
