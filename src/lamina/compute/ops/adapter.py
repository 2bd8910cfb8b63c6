"""What a method puts into a model: modules with an adapter in them, whatever the method.

Everything that runs a model, folds an adapter in or looks for its tensors knows these classes alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.row_forms import Bias, Delta, LowRank, NotMixable, RowForm
from lamina.compute.weights import FrozenLinear


class AdapterModule(nn.Module, ABC):
    """What a method puts into a model: in the place of one of its modules, around it, or before the whole model.

    Attributes:
        enabled: Whether it takes part; without it the model is the bare base.
        merges: Whether it can be folded into the base's weights.
    """

    merges: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    @abstractmethod
    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        """The trained tensors, by their names in the HF PEFT format, such as `lora_A.weight`."""

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        """Tensors that are saved with the adapter and not trained, named alike."""
        return {}

    def fast_tensors(self) -> list[str]:
        """Which of the trained tensors LoRA+ gives a larger learning rate: those named B."""
        return []

    def embedding_tensors(self) -> list[str]:
        """Which of the trained tensors hold embeddings, one a row, rather than a matrix that multiplies."""
        return []

    def row_forms(self) -> tuple[RowForm, ...]:
        """How it acts on the bare base, for a batch whose rows have different adapters; whether it is enabled or not.

        Returns:
            What acts in turn; empty where other modules hold all that it does. `NotMixable` stands alone.
        """
        return (NotMixable(f"{type(self).__name__} does not say how it acts on a single row of a batch"),)

    @abstractmethod
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        """Puts what it adds into the base's weights, and the base's own module back at `name`."""

    @property
    def base_module(self) -> nn.Module | None:
        """The module whose weights `fold_in` replaces, by new tensors of the same dtype; None if there is none."""
        return None


class AdapterLinear(AdapterModule):
    """A frozen linear layer with an adapter beside it.

    Attributes:
        frozen: The base weight.
    """

    def __init__(self, frozen: FrozenLinear) -> None:
        super().__init__()
        self.frozen = frozen

    @property
    def base_module(self) -> nn.Module:
        return self.frozen.base

    @property
    def weight(self) -> torch.Tensor:
        """The base weight, for code that looks at a layer's dtype or device."""
        return self.frozen.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base bias."""
        return self.frozen.base.bias

    @property
    def rank(self) -> int | None:
        """Rank of the low-rank path that is all this layer adds, so that it can join a group; None if it is not."""
        return None

    def low_rank_path(self) -> LowRank | None:
        """The low-rank path as it is now, if `rank` is not None; None while it is switched off."""
        return None

    @abstractmethod
    def delta_weight(self) -> torch.Tensor:
        """What the adapter adds to W: (out_features, in_features), float32."""

    def delta_bias(self) -> torch.Tensor | None:
        """What the adapter adds to the bias: (out_features,), float32; None for nothing."""
        return None

    def row_forms(self) -> tuple[RowForm, ...]:
        return (Delta(self.delta_weight()), *self.bias_form())

    def bias_form(self) -> tuple[Bias, ...]:
        """What it adds to the bias, as a part of `row_forms`."""
        added = self.delta_bias()
        return () if added is None else (Bias(added),)

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        self.frozen.set_weight(self.frozen.weight(torch.float32) + self.delta_weight())
        delta = self.delta_bias()
        if delta is not None:
            self.frozen.set_bias((0.0 if self.bias is None else self.bias.float()) + delta)
        set_module(model, name, self.frozen.base)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` at the dotted `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
