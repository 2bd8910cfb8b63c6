"""The base class of low-rank adapters on linear layers: LoRA, DoRA, AdaLoRA and VeRA.

    y = c (x W^T + s (drop(x) A^T) B^T) + b

The methods differ in how they compute A and B, and in whether they scale the outputs by c.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from lamina.compute.ops.adapter import AdapterLinear
from lamina.compute.ops.lora_linear import lora_linear
from lamina.compute.ops.row_forms import LowRank, RowForm
from lamina.compute.weights import FrozenLinear


class LowRankLinear(AdapterLinear):
    """A frozen linear layer with a low-rank path.

    Attributes:
        scaling: s.
        dropout: Probability of dropping an element of the low-rank path's input in training.
    """

    def __init__(self, frozen: FrozenLinear, scaling: float, dropout: float) -> None:
        super().__init__(frozen)
        self.scaling = scaling
        self.dropout = dropout

    @abstractmethod
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the current A (rank, in_features) and B (out_features, rank), float32."""

    def columns(self) -> torch.Tensor | None:
        """Computes c, the factors of the outputs, (out_features,) float32; None for 1."""
        return None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        if not self.enabled:
            return self.frozen.matmul(x)
        return lora_linear(x, self.frozen, *self.factors(), self.scaling, self.current_dropout(), self.columns())

    def low_rank_path(self) -> LowRank | None:
        if not self.enabled:
            return None
        return LowRank(*self.factors(), self.scaling, self.current_dropout(), self.columns())

    def row_forms(self) -> tuple[RowForm, ...]:
        return (LowRank(*self.factors(), self.scaling, columns=self.columns()), *self.bias_form())

    def delta_weight(self) -> torch.Tensor:
        A, B = self.factors()
        return self.scaling * (B @ A)

    def current_dropout(self) -> float:
        """Returns the probability of dropout: 0 outside of training."""
        return self.dropout if self.training else 0.0
