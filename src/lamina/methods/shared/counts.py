"""How many parameters an adapter trains, and how many it has with its base."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lamina.compute.weights import count_weights
from lamina.methods.shared.trained_copy import count_replaced


@dataclass(frozen=True)
class ParameterCounts:
    """The parameters of an adapter beside its base.

    Attributes:
        trained: Those that training changes.
        total: Those of adapter and base.
    """

    trained: int
    total: int

    @property
    def share(self) -> float:
        """The share that is trained, 0 to 1."""
        return self.trained / self.total

    def __str__(self) -> str:
        return f"trained parameters: {self.trained:,} of {self.total:,} ({self.share:.4%})"


def count_parameters(parameters: Iterable[torch.Tensor]) -> int:
    """Counts the elements of all tensors; one that is shared counts once."""
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in parameters}.values())


def total_parameters(model: PreTrainedModel) -> int:
    """Counts those of a model with its adapter; what a trained copy stands in for does not count beside it."""
    return count_weights(model) - count_replaced(model)
