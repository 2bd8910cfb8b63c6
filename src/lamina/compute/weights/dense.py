"""A weight stored as an ordinary tensor: torch's `nn.Linear`, or GPT-2's `Conv1D`, which stores it transposed."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from lamina.compute.weights.frozen import FrozenLinear


class DenseLinear(FrozenLinear):
    """A frozen `nn.Linear` or `Conv1D`, or a subclass of `nn.Linear` that computes the same, such as Falcon's."""

    base: nn.Linear | Conv1D

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        assert isinstance(module, nn.Linear | Conv1D)
        self.base = module
        self._transposed = isinstance(module, Conv1D)
        self.out_features, self.in_features = self._matrix().shape

    @classmethod
    def stores(cls, module: nn.Module) -> bool:
        if type(module) in (nn.Linear, Conv1D):
            return True
        held = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
        return isinstance(module, nn.Linear) and held <= {"weight", "bias"} and _computes_as_linear(type(module))

    def matmul(self, x: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        return F.linear(x, self._matrix(), self.base.bias if with_bias else None)

    def matmul_t(self, grad: torch.Tensor) -> torch.Tensor:
        return grad @ self._matrix()

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        return self._matrix().detach().to(dtype)

    @torch.no_grad()
    def set_weight(self, weight: torch.Tensor) -> None:
        stored = weight.to(self.base.weight.dtype)
        # A new tensor rather than a copy into the old one, whose memory an embedding may share.
        self.base.weight = nn.Parameter((stored.T if self._transposed else stored).contiguous(), requires_grad=False)

    @torch.no_grad()
    def set_bias(self, bias: torch.Tensor) -> None:
        self.base.bias = nn.Parameter(bias.to(self.base.weight.dtype), requires_grad=False)

    def _matrix(self) -> torch.Tensor:
        return self.base.weight.T if self._transposed else self.base.weight


@cache
@torch.no_grad()
def _computes_as_linear(kind: type[nn.Linear]) -> bool:
    """Whether a subclass of `nn.Linear` computes x W^T + b from weight and bias alone, tested on a small module."""
    if kind is nn.modules.linear.NonDynamicallyQuantizableLinear:
        return False  # nn.MultiheadAttention reads its weight and never calls it
    generator = torch.Generator().manual_seed(0)
    for has_bias in (False, True):
        module = kind.__new__(kind)
        nn.Linear.__init__(module, 3, 5, has_bias, device="cpu", dtype=torch.float64)
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
        for shape in ((4, 3), (2, 4, 3)):
            x = torch.randn(shape, dtype=torch.float64, generator=generator)
            try:
                found = module(x)
            except Exception:  # it needs attributes that an nn.Linear does not have
                return False
            if not isinstance(found, torch.Tensor) or found.shape != (*shape[:-1], 5):
                return False
            if not torch.allclose(found, F.linear(x, module.weight, module.bias), rtol=1e-12, atol=1e-12):
                return False
    return True
