"""What a method is, and what it leaves in a model.

A method's file defines `METHOD`, an instance of a `Method` subclass; discovery finds it by the file's name, which is
also the name of its configuration in `config/methods/`.
"""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.ops.linear_group import Detour
from lamina.quantization import FrozenLinear

# HF peft saves an adapter's tensors under this prefix, and so does lamina, in checkpoints too.
PEFT_PREFIX = "base_model.model."


class AdapterLinear(nn.Module, ABC):
    """A frozen linear layer with an adapter beside it.

    Attributes:
        frozen: The base weight.
        enabled: Whether the adapter takes part; without it the layer is the bare base.
    """

    def __init__(self, frozen: FrozenLinear) -> None:
        super().__init__()
        self.frozen = frozen
        self.enabled = True

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
        """Rank of the low-rank detour that is all this layer adds, so that it can join a group; None if it is not."""
        return None

    def detour(self) -> Detour | None:
        """The low-rank detour as it is now, if `rank` is not None; None while it is switched off."""
        return None

    @abstractmethod
    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        """The adapter's own tensors, by their names in the HF PEFT format, such as `lora_A.weight`."""

    @abstractmethod
    def delta_weight(self) -> torch.Tensor:
        """What the adapter adds to W: (out_features, in_features), float32."""


@dataclass(frozen=True)
class Injection:
    """An adapter attached to a model.

    Attributes:
        model: The model it is attached to.
        config: The method's configuration.
        layers: The adapter layers by the names of the modules that they replaced, in the model's order.
    """

    model: PreTrainedModel
    config: MethodConfig
    layers: dict[str, AdapterLinear]

    def tensors(self) -> dict[str, nn.Parameter]:
        """All trained tensors, by their names in the HF PEFT format."""
        return {
            f"{PEFT_PREFIX}{name}.{key}": tensor
            for name, layer in self.layers.items()
            for key, tensor in layer.adapter_tensors().items()
        }

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies saved tensors in; names and shapes were checked by `adapter.check_tensors`."""
        for name, parameter in self.tensors().items():
            parameter.copy_(tensors[name])

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """The bare base, inside the block."""
        states = {name: layer.enabled for name, layer in self.layers.items()}
        for layer in self.layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.enabled = states[name]


class Method(ABC):
    """One PEFT method."""

    @abstractmethod
    def attach(self, model: PreTrainedModel, config: Any, seed: int) -> Injection:
        """Puts a fresh adapter into `model`, initialised from `seed`.

        Raises:
            ConfigError: The configuration does not fit the model.
        """

    @abstractmethod
    def peft_config(self, config: Any, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        """The content of HF peft's `adapter_config.json`."""

    @abstractmethod
    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        """Whether a peft configuration is of this method."""

    @abstractmethod
    def from_peft(self, peft_config: Mapping[str, Any]) -> MethodConfig:
        """The configuration that a peft one stands for.

        Raises:
            AdapterError: It uses a feature of peft that would change the result and is not supported.
        """


def find_method(name: str) -> Method:
    """The method of that name (a key of `METHOD_CONFIGS`)."""
    assert name in METHOD_CONFIGS, name
    return importlib.import_module(f"lamina.methods.{name}").METHOD


def all_methods() -> dict[str, Method]:
    """Every method by its name."""
    return {name: find_method(name) for name in METHOD_CONFIGS}


def inject(model: PreTrainedModel, config: MethodConfig, seed: int) -> Injection:
    """Attaches a fresh adapter of the configured method. Only the adapter's tensors ask for gradients afterwards."""
    return find_method(config.type).attach(model, config, seed)
