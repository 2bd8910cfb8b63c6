"""A weight held as an ordinary tensor: torch's `nn.Linear`, or GPT-2's `Conv1D`, which holds it transposed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from lamina.quantization.frozen import FrozenLinear


class DenseLinear(FrozenLinear):
    """An `nn.Linear` or `Conv1D`, frozen."""

    base: nn.Linear | Conv1D

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        assert isinstance(module, nn.Linear | Conv1D)
        self.base = module
        self._transposed = isinstance(module, Conv1D)
        self.out_features, self.in_features = self._matrix().shape

    @classmethod
    def stores(cls, module: nn.Module) -> bool:
        return type(module) in (nn.Linear, Conv1D)  # a subclass may compute something else

    def matmul(self, x: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        return F.linear(x, self._matrix(), self.base.bias if with_bias else None)

    def matmul_t(self, grad: torch.Tensor) -> torch.Tensor:
        return grad @ self._matrix()

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        return self._matrix().detach().to(dtype)

    @torch.no_grad()
    def set_weight(self, weight: torch.Tensor) -> None:
        stored = weight.to(self.base.weight.dtype)
        # A new tensor, not a copy into the old one: an embedding may share the old one's memory.
        self.base.weight = nn.Parameter((stored.T if self._transposed else stored).contiguous(), requires_grad=False)

    @torch.no_grad()
    def set_bias(self, bias: torch.Tensor) -> None:
        self.base.bias = nn.Parameter(bias.to(self.base.weight.dtype), requires_grad=False)

    def _matrix(self) -> torch.Tensor:
        return self.base.weight.T if self._transposed else self.base.weight
