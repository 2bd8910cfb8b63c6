"""Frozen weights of a mixture's experts: the matrices of all experts stacked in one tensor, behind one interface.

transformers keeps them as parameters (experts, out, in), or (experts, in, out) where a family stores them transposed.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from lamina.compute.weights.packed import PackedLinear


class ExpertWeights(ABC):
    """One frozen matrix W (out_features, in_features) for each expert.

    Attributes:
        experts: Number of experts.
        out_features: Rows of each matrix.
        in_features: Columns of each matrix.
    """

    experts: int
    out_features: int
    in_features: int

    @abstractmethod
    def matrix(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        """Returns an expert's W (out_features, in_features) in `dtype`; may share memory with the stored one."""


class DenseExperts(ExpertWeights):
    """The matrices of a parameter."""

    def __init__(self, stored: torch.Tensor, transposed: bool) -> None:
        """
        Args:
            stored: (experts, out, in), or (experts, in, out) if transposed.
            transposed: Whether the matrices are stored transposed.
        """
        self._stack = stored.mT if transposed else stored
        self.experts, self.out_features, self.in_features = self._stack.shape

    def matrix(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        return self._stack[expert].to(dtype)


class PackedStack(nn.Module, ExpertWeights):
    """The matrices of all experts, each packed on its own as a `PackedLinear` is, with their buffers stacked.

    Attributes:
        rows, columns: Of each matrix as it is stored; its blocks of weights lie in rows.
    """

    def __init__(self, one: PackedLinear, buffers: Mapping[str, torch.Tensor], transposed: bool) -> None:
        """
        Args:
            one: A packed matrix, whose buffers may be None: its sizes, its dtype, and how it is dequantized.
            buffers: Its buffers by name, each with a first dimension for the experts.
            transposed: Whether the matrices are stored transposed, (in, out).
        """
        super().__init__()
        # In a tuple, so that torch does not register it.
        self._one, self._transposed = (one,), transposed
        self.rows, self.columns = one.out_features, one.in_features
        self.out_features, self.in_features = (self.columns, self.rows) if transposed else (self.rows, self.columns)
        self.experts = len(next(iter(buffers.values())))
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    @classmethod
    def of(cls, packed: Iterable[PackedLinear], transposed: bool) -> PackedStack:
        """Stacks packed matrices, one for each expert."""
        matrices = list(packed)
        names = [name for name, _ in matrices[0].named_buffers()]
        return cls(matrices[0], {name: torch.stack([getattr(m, name) for m in matrices]) for name in names}, transposed)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that weights are dequantized to."""
        return self._one[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the packed weights are."""
        return next(self.buffers()).device

    @property
    def shape(self) -> torch.Size:
        """Of the weights as they are stored unpacked, (experts, rows, columns)."""
        return torch.Size((self.experts, self.rows, self.columns))

    def numel(self) -> int:
        """Counts the weights."""
        return self.shape.numel()

    def expert(self, number: int) -> PackedLinear:
        """Returns one expert's packed matrix, which shares memory with this one."""
        view = copy.copy(self._one[0])
        view._buffers = {**view._buffers, **{name: buffer[number] for name, buffer in self.named_buffers()}}
        return view

    def matrix(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        dense = self.expert(expert).dense(dtype)
        return dense.T if self._transposed else dense

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Dequantizes all matrices, (experts, rows, columns), by default in the compute dtype."""
        out = torch.empty(self.shape, dtype=dtype or self.dtype, device=self.device)
        for number in range(self.experts):
            out[number] = self.expert(number).dense(out.dtype)
        return out

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedStack:
        # A change of dtype changes the dtype that weights are dequantized to, not the stored scales.
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self.get_buffer(name).device)
        one = copy.copy(self._one[0])
        one.dtype = fn(torch.empty(0, dtype=one.dtype, device=self.device)).dtype
        self._one = (one,)
        return self


def count_weights(model: nn.Module) -> int:
    """Counts the parameters of a model, including packed weights; shared parameters count once."""
    modules = [module for module in model.modules() if isinstance(module, PackedLinear)]
    stored = {id(t) for module in modules for name, t in module.named_parameters() if name in module.divisible}
    packed = sum(module.in_features * module.out_features for module in modules)
    packed += sum(module.numel() for module in model.modules() if isinstance(module, PackedStack))
    return packed + sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in stored)
