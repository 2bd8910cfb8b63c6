"""VeRA: y = x W^T + b' + (((x A^T) * d) B^T) * b with random, frozen A and B that all layers share.

Kopiczko et al. 2023, "VeRA: Vector-based Random Matrix Adaptation", arXiv:2310.11454 (b' is the layer's own bias).
d (r,) and b (out,) are trained. A and B are as large as the widest layer needs; each layer uses the first columns of A
and the first rows of B. With diag(d) A and diag(b) B as its factors it is a low-rank path like LoRA's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.ops.row_forms import RowForm
from lamina.compute.weights import FrozenLinear
from lamina.config.methods.vera import VeraConfig
from lamina.methods.shared.base import Injection, Method
from lamina.methods.shared.linears import frozen_linears, peft_fields, read_peft_fields, zeros
from lamina.methods.shared.low_rank import LowRankLinear
from lamina.methods.shared.targets import find_targets, replace_linears


class Projections(AdapterModule):
    """The random matrices that all layers share, drawn from `projection_prng_key`, as in peft.

    Attributes:
        A: (r, widest input), float32; uniform in +-sqrt(6 / widest input), which is Kaiming's.
        B: (widest output, r), float32; uniform in +-sqrt(6 / r).
    """

    A: torch.Tensor
    B: torch.Tensor

    def __init__(self, widest_in: int, widest_out: int, r: int, seed: int, saved: bool, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("A", (r, widest_in)), ("B", (widest_out, r))):
            bound = math.sqrt(6 / shape[1])
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, drawn.to(device), persistent=False)
        self._saved = saved

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {}

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return {"base_model.vera_A": self.A, "base_model.vera_B": self.B} if self._saved else {}

    def row_forms(self) -> tuple[RowForm, ...]:
        """Returns nothing: the layers' forms contain the parts that they use."""
        return ()

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        """Does nothing: the layers merge the parts that they use."""


class VeraLinear(LowRankLinear):
    """A frozen linear layer with a scaled part of the shared matrices.

    Attributes:
        vera_lambda_d: d, (r,), float32; initialized with `d_initial`.
        vera_lambda_b: b, (out_features,), float32; zero, so that the layer starts as the base.
    """

    def __init__(self, frozen: FrozenLinear, projections: Projections, d_initial: float, dropout: float) -> None:
        super().__init__(frozen, 1.0, dropout)
        device = self.weight.device
        self.projections = projections
        self.vera_lambda_d = nn.Parameter(torch.full((len(projections.A),), d_initial, device=device))
        self.vera_lambda_b = zeros((frozen.out_features,), device)

    @property
    def rank(self) -> int:
        return self.vera_lambda_d.shape[0]

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return {"vera_lambda_d": self.vera_lambda_d, "vera_lambda_b": self.vera_lambda_b}

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        A = self.projections.A[:, : self.frozen.in_features]
        B = self.projections.B[: self.frozen.out_features]
        return self.vera_lambda_d[:, None] * A, self.vera_lambda_b[:, None] * B


class Vera(Method):
    """Vector-based random matrix adaptation."""

    draws = False  # the shared matrices have their own seed

    def attach(self, model: PreTrainedModel, config: VeraConfig, seed: int) -> Injection:
        names = find_targets(model, config.target_modules)
        linears = frozen_linears(model, names).values()
        projections = Projections(
            max(linear.in_features for linear in linears),
            max(linear.out_features for linear in linears),
            config.r,
            config.projection_prng_key,
            config.save_projection,
            model.device,
        )

        def build(frozen: FrozenLinear) -> VeraLinear:
            return VeraLinear(frozen, projections, config.d_initial, config.vera_dropout)

        return Injection(model, config, {**replace_linears(model, names, build), "": projections})

    def peft_config(self, config: VeraConfig, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        return peft_fields("VERA", config.target_modules, target_modules, base_ref) | {
            "r": config.r,
            "d_initial": config.d_initial,
            "vera_dropout": config.vera_dropout,
            "projection_prng_key": config.projection_prng_key,
            "save_projection": config.save_projection,
            "fan_in_fan_out": False,
            "bias": "none",
            "init_weights": True,
        }

    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        return peft_config.get("peft_type") == "VERA"

    def from_peft(self, peft_config: Mapping[str, Any]) -> VeraConfig:
        return read_peft_fields(VeraConfig, peft_config, {"init_weights"})


METHOD = Vera()
