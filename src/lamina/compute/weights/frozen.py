"""`FrozenLinear`: the interface through which methods use a base weight, however it is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn


class FrozenLinear(nn.Module, ABC):
    """A linear layer whose weight W (out_features, in_features) is never trained.

    Attributes:
        base: The original module, which goes back into the model when the adapter is merged or removed.
        in_features: Width of the input.
        out_features: Width of the output.
        is_exact: Whether W is the model's original weight; False if it was quantized.
    """

    is_exact = True
    base: Any  # an nn.Module; each subclass narrows the type to the classes that it supports
    in_features: int
    out_features: int

    @classmethod
    @abstractmethod
    def stores(cls, module: nn.Module) -> bool:
        """Whether this class can wrap `module`."""

    @abstractmethod
    def __init__(self, module: nn.Module) -> None:
        super().__init__()

    @abstractmethod
    def matmul(self, x: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        """Computes x W^T, plus the bias if there is one. `x`: (..., in_features), in the compute dtype."""

    @abstractmethod
    def matmul_t(self, grad: torch.Tensor) -> torch.Tensor:
        """Computes grad W, the gradient of the input. `grad`: (..., out_features)."""

    @abstractmethod
    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns W as a dense (out_features, in_features) tensor in `dtype`; may share memory with the stored one."""

    def correction(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Returns LoftQ's A (r, in_features) and B (out_features, r), float32, on the CPU; None without LoftQ."""
        return None

    @abstractmethod
    def set_weight(self, weight: torch.Tensor) -> None:
        """Stores a new W (out_features, in_features), rounded to the stored dtype. Used only when merging."""

    @abstractmethod
    def set_bias(self, bias: torch.Tensor) -> None:
        """Stores a new bias (out_features,), even if there was none. Used only when merging."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes x W^T, plus the bias if there is one."""
        return self.matmul(x)
