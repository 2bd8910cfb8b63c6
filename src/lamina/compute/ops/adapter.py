"""The modules that a method puts into a model: the interface of an adapter, whatever its method.

Code that runs a model, merges an adapter or looks for its tensors uses only these classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.row_forms import Bias, Delta, LowRank, NotMixable, RowForm
from lamina.compute.weights import FrozenLinear


class AdapterModule(nn.Module, ABC):
    """A module of an adapter: it replaces or wraps a module of the model, or acts on the model as a whole.

    Attributes:
        enabled: Whether the adapter is applied; if not, the module computes what the base does.
        merges: Whether the adapter can be merged into the base's weights.
    """

    merges: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    @abstractmethod
    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        """Returns the trained tensors, by their names in the HF PEFT format, such as `lora_A.weight`."""

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        """Returns tensors that are saved with the adapter but not trained, by their names in the HF PEFT format."""
        return {}

    def fast_tensors(self) -> list[str]:
        """Names the trained tensors that LoRA+ gives a larger learning rate: the B's."""
        return []

    def embedding_tensors(self) -> list[str]:
        """Names the trained tensors whose rows are embeddings, rather than a matrix that multiplies."""
        return []

    def row_forms(self) -> tuple[RowForm, ...]:
        """How it acts on the bare base, for a batch whose rows have different adapters; whether it is enabled or not.

        Returns:
            What acts in turn; empty where other modules hold all that it does. `NotMixable` stands alone.
        """
        return (NotMixable(f"{type(self).__name__} does not say how it acts on a single row of a batch"),)

    @abstractmethod
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        """Merges the adapter into the base's weights, and puts the base's own module back at `name`."""

    def untouched(self) -> dict[str, int]:
        """Counts the weights of the module's own parameters that the adapter leaves as they are, by parameter."""
        return {}

    @property
    def virtual_tokens(self) -> int:
        """How many rows it puts before every document."""
        return 0

    @property
    def base_module(self) -> nn.Module | None:
        """The module whose weights `fold_in` replaces by new tensors of the same dtype; None if there is none."""
        return None


class AdapterWrapper(AdapterModule):
    """An adapter around a module of the base, which answers for the module wherever model code reads its attributes.

    Attributes:
        base: The module, unchanged.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        # Model code reads a module's weight for its dtype, an embedding's padding index, and so on.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    @property
    def base_module(self) -> nn.Module:
        return self.base


class AdapterLinear(AdapterModule):
    """A frozen linear layer with an adapter.

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
        """The base weight, for code that reads a layer's dtype or device from it."""
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
        """Computes what merging adds to W: (out_features, in_features), float32."""

    def delta_bias(self) -> torch.Tensor | None:
        """Computes what merging adds to the bias: (out_features,), float32; None for nothing."""
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
    """Replaces the submodule with the dotted `name` by `module`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
