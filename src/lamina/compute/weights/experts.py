"""Frozen weights of a mixture's experts: the matrices of all experts stacked in one tensor, behind one interface.

transformers keeps them as parameters (experts, out, in), or (experts, in, out) where a family stores them transposed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


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


def stored_experts(module: nn.Module, name: str, transposed: bool) -> ExpertWeights:
    """Wraps the stacked weights that a module of experts has under this name."""
    return DenseExperts(getattr(module, name).detach(), transposed)
