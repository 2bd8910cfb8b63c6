"""LoKr: y = x W^T + b + s x (W1 (x) W2)^T, the Kronecker product of a small matrix and a larger one.

Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
arXiv:2309.14859. s = alpha / r. W1 is (l, m) and W2 is (k, n), with out = l k and in = m n. W2 is a product of rank r,
or a full matrix if r is at least half of its larger side. The product with x does not form W1 (x) W2
(`compute/ops/delta_linear.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.ops.delta_linear import Kronecker, delta_linear
from lamina.compute.weights import FrozenLinear
from lamina.config.methods.lokr import LoKrConfig
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.linears import peft_fields, read_peft_fields, uniform, zeros
from lamina.methods.shared.targets import find_targets, replace_linears


class LoKrLinear(AdapterLinear):
    """A frozen linear layer plus a Kronecker product.

    Attributes:
        factors: The factors, float32, by peft's names: `lokr_w1` (l, m), or `lokr_w1_a` (l, r) and `lokr_w1_b` (r, m);
            `lokr_w2` (k, n), or `lokr_w2_a` (k, r) and `lokr_w2_b` (r, n). `lokr_w1` or `lokr_w1_a` is zero, so that
            the layer starts as the base; the others are uniform in +-1/sqrt(columns).
    """

    def __init__(
        self,
        frozen: FrozenLinear,
        r: int,
        scaling: float,
        decompose_both: bool,
        decompose_factor: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(frozen)
        device = self.weight.device
        m, n = factorization(frozen.in_features, decompose_factor)
        l, k = factorization(frozen.out_features, decompose_factor)  # noqa: E741 - with m, as in the equation
        self.factors = nn.ParameterDict()
        if decompose_both and r < max(l, m) / 2:
            self.factors["lokr_w1_a"] = zeros((l, r), device)
            self.factors["lokr_w1_b"] = nn.Parameter(uniform((r, m), generator).to(device))
        else:
            self.factors["lokr_w1"] = zeros((l, m), device)
        if r < max(k, n) / 2:
            self.factors["lokr_w2_a"] = nn.Parameter(uniform((k, r), generator).to(device))
            self.factors["lokr_w2_b"] = nn.Parameter(uniform((r, n), generator).to(device))
        else:
            self.factors["lokr_w2"] = nn.Parameter(uniform((k, n), generator).to(device))
        self.scaling = scaling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        if not self.enabled:
            return self.frozen.matmul(x)
        return delta_linear(x, self.frozen, Kronecker, (self.scaling * self._whole("lokr_w1"), self._whole("lokr_w2")))

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return dict(self.factors.items())

    def delta_weight(self) -> torch.Tensor:
        return self.scaling * torch.kron(self._whole("lokr_w1"), self._whole("lokr_w2").contiguous())

    def _whole(self, name: str) -> torch.Tensor:
        if name in self.factors:
            return self.factors[name]
        return self.factors[f"{name}_a"] @ self.factors[f"{name}_b"]


class LoKr(Method):
    """Low-rank Kronecker product."""

    peft_takes_conv1d = False

    def attach(self, model: PreTrainedModel, config: LoKrConfig, seed: int) -> Injection:
        names = find_targets(model, config.target_modules)
        generator = torch.Generator().manual_seed(seed)

        def build(frozen: FrozenLinear) -> LoKrLinear:
            both, factor = config.decompose_both, config.decompose_factor
            return LoKrLinear(frozen, config.r, config.scaling, both, factor, generator)

        return Injection(model, config, replace_linears(model, names, build))

    def peft_config(self, config: LoKrConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return peft_fields("LOKR", config.target_modules, target_modules, base_ref) | {
            "r": config.r,
            "alpha": config.alpha,
            "decompose_both": config.decompose_both,
            "decompose_factor": config.decompose_factor,
            "rank_dropout": 0.0,
            "module_dropout": 0.0,
            "rank_dropout_scale": False,
            "use_effective_conv2d": False,
            "init_weights": True,
            "rank_pattern": {},
            "alpha_pattern": {},
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "LOKR"

    def from_peft(self, peft_config: Mapping[str, Any]) -> LoKrConfig:
        return read_peft_fields(LoKrConfig, peft_config, _NO_EFFECT_FIELDS)


METHOD = LoKr()

# Fields of the initialization, of dropout in training, and of convolutions.
_NO_EFFECT_FIELDS = {"init_weights", "module_dropout", "rank_dropout", "rank_dropout_scale", "use_effective_conv2d"}


def factorization(size: int, factor: int) -> tuple[int, int]:
    """Factors a dimension of a weight into those of W1 and W2.

    Args:
        size: The dimension.
        factor: W1's dimension if it divides `size`. Else W1's is the largest divisor that is at most `factor` and at
            most the square root of `size`; -1 for the square root alone.

    >>> factorization(128, -1), factorization(128, 4), factorization(127, -1), factorization(30, 4)
    ((8, 16), (4, 32), (1, 127), (3, 10))
    """
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    root = math.isqrt(size)
    limit = root if factor == -1 else min(root, factor)
    first = next(divisor for divisor in range(limit, 0, -1) if size % divisor == 0)
    return first, size // first
