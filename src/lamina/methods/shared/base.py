"""`Method`, the interface of a PEFT method, and `Injection`, an adapter attached to a model.

A method's file defines `METHOD`, an instance of a `Method` subclass. It is discovered by the file's name, which is also
the name of its configuration in `config/methods/`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina import plugins
from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.ops.row_forms import RowForm
from lamina.compute.weights import PackedLinear
from lamina.config import METHOD_CONFIGS, MethodConfig
from lamina.errors import ConfigError, Problem
from lamina.quantization.loftq import LoftqPlan

# The prefix of tensor names in HF peft's adapter files; lamina uses it too, also in checkpoints.
PEFT_PREFIX = "base_model.model."


class Hooks:
    """What a method does around each step of the training loop. The defaults do nothing."""

    def penalty(self) -> torch.Tensor | None:
        """Returns a scalar that is added to the loss, once per step."""
        return None

    def before_update(self, step: int) -> None:
        """Called after the gradients of step `step` (from 1) are clipped, and before the optimizer's update."""

    def after_update(self, step: int) -> None:
        """Called after the optimizer's update, while the gradients still exist."""

    def is_settled(self) -> bool:
        """Whether the adapter has its final form, such as its target rank; until then no evaluation counts as best."""
        return True

    def figures(self) -> dict[str, Any]:
        """Returns the method's entries for the run's summary, as JSON values."""
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        """Returns the state that a resumed run needs to continue exactly."""
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restores what `state` returned."""


@dataclass(frozen=True)
class Saved:
    """An adapter in the form in which it is saved.

    Attributes:
        config: The configuration to load it with.
        tensors: Its tensors, by their names in the HF PEFT format.
    """

    config: MethodConfig
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Injection:
    """An adapter attached to a model.

    Attributes:
        model: The model that the adapter is attached to.
        config: The method's configuration.
        layers: The adapter's modules, by the names of the modules that they replaced, in the model's order. A module
            for the model as a whole has the name "", and its tensors have no prefix.
        left_out: Modules that the method would adapt, but that do not run on a text.
        useless: Sentences about settings that select nothing. They are errors for a new adapter, but not in loading.
    """

    model: PreTrainedModel
    config: MethodConfig
    layers: Mapping[str, AdapterModule]
    left_out: Sequence[str] = ()
    useless: Sequence[str] = ()

    def tensors(self) -> dict[str, nn.Parameter]:
        """Returns all trained tensors, by their names in the HF PEFT format; a shared tensor appears once."""
        named: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for name, layer in self.layers.items():
            for key, tensor in layer.adapter_tensors().items():
                if id(tensor) not in seen:
                    named[tensor_name(name, key)] = tensor
                    seen.add(id(tensor))
        return named

    def saved_tensors(self) -> dict[str, torch.Tensor]:
        """Returns the trained tensors and the fixed tensors that are saved with them."""
        fixed = {
            tensor_name(name, key): tensor
            for name, layer in self.layers.items()
            for key, tensor in layer.fixed_tensors().items()
        }
        return {**self.tensors(), **fixed}

    @torch.no_grad()
    def row_forms(self) -> dict[str, tuple[RowForm, ...]]:
        """How the adapter acts on the bare base, by module name, so that a batch can mix rows of different adapters.

        What acts on the model as a whole has the name "". A module that is not mixable says why.
        """
        return {name: forms for name, layer in self.layers.items() if (forms := layer.row_forms())}

    def fast_tensors(self) -> set[str]:
        """Names the tensors that LoRA+ gives a larger learning rate."""
        return {tensor_name(name, key) for name, layer in self.layers.items() for key in layer.fast_tensors()}

    def vocabulary_tensors(self) -> set[str]:
        """Names the tensors that are embeddings, or belong to the input embedding or the output head."""
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return {
            tensor_name(name, key)
            for name, layer in self.layers.items()
            for key in (layer.adapter_tensors() if layer in ends else layer.embedding_tensors())
        }

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Loads trained tensors, or all saved ones; `adapter.check_tensors` checks names and shapes."""
        trained = self.tensors()
        for name, tensor in self.saved_tensors().items():
            if name in trained or name in tensors:
                tensor.copy_(tensors[name])

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Disables the adapter inside the block, so that the model is the bare base."""
        states = {name: layer.enabled for name, layer in self.layers.items()}
        for layer in self.layers.values():
            layer.enabled = False
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.enabled = states[name]


def tensor_name(module: str, key: str) -> str:
    """Builds a tensor's name in the HF PEFT format; tensors of the model as a whole have no prefix."""
    return f"{PEFT_PREFIX}{module}.{key}" if module else key


class Method(ABC):
    """One PEFT method.

    Attributes:
        in_peft: Whether HF peft has the method, so that it can load what is saved.
        peft_takes_conv1d: Whether HF peft supports it on GPT-2's `Conv1D` too, which stores its weight transposed.
        starts_as_base: Whether a new adapter leaves the model's output unchanged, unless the configuration's
            `starts_elsewhere` says otherwise.
        draws: Whether a new adapter depends on the seed.
        needs_biases: Whether it works only on models with biases.
        fallback: Whether it reads the peft configurations that no other method reads, and so is tried last.
    """

    in_peft: ClassVar[bool] = True
    peft_takes_conv1d: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    needs_biases: ClassVar[bool] = False
    fallback: ClassVar[bool] = False

    def check(self, model: PreTrainedModel, config: Any) -> None:
        """Runs the checks for a new adapter that do not apply to loading one, before `attach`.

        Raises:
            ConfigError: A new adapter cannot have this configuration on this model.
        """
        return

    @abstractmethod
    def attach(self, model: PreTrainedModel, config: Any, seed: int) -> Injection:
        """Attaches a new adapter to `model`, initialized from `seed`.

        Raises:
            ConfigError: The configuration does not fit the model.
        """

    def leaves_out(self, config: Any, name: str) -> bool:
        """Whether the user's settings exclude a module from those that `target_modules: all-linear` selects."""
        return False

    def plan_loftq(self, config: Any) -> Callable[[PreTrainedModel], LoftqPlan] | None:
        """Returns a function from a model without weights to the `LoftqPlan` of its quantization; None without LoftQ.

        The function raises ConfigError if the configuration does not fit the model.
        """
        return None

    def prepare(self, injection: Injection, documents: Sequence[torch.Tensor]) -> Injection:
        """Prepares a new adapter for training, for example by initializing it from the training data.

        Args:
            injection: The result of `attach`.
            documents: Token ids (1, T) of each training document, encoded on access.

        Returns:
            The adapter to train: the same one, or a replacement.
        """
        return injection

    def hooks(self, injection: Injection, total_steps: int) -> Hooks:
        """Returns what the method does around each of `total_steps` steps."""
        return Hooks()

    def saved(self, injection: Injection) -> Saved:
        """Returns the adapter in the form to save, without changing the model."""
        return Saved(injection.config, injection.saved_tensors())

    def begun(self, config: Any) -> Any:
        """Returns the configuration of an adapter that has its tensors, without the settings of initialization."""
        return config

    @abstractmethod
    def peft_config(self, config: Any, target_modules: list[str], base_ref: str) -> dict[str, Any]:
        """Builds the content of HF peft's `adapter_config.json`."""

    @abstractmethod
    def reads_peft(self, peft_config: Mapping[str, Any]) -> bool:
        """Whether a peft configuration belongs to this method."""

    @abstractmethod
    def from_peft(self, peft_config: Mapping[str, Any]) -> MethodConfig:
        """Converts a peft configuration to this method's.

        Raises:
            AdapterError: It uses a feature of peft that would change the output and is not supported.
        """


def find_method(name: str) -> Method:
    """Returns the method with this name (a key of `METHOD_CONFIGS`)."""
    assert name in METHOD_CONFIGS, name
    return plugins.load_member("methods", name).METHOD


def all_methods() -> dict[str, Method]:
    """Returns every method by its name."""
    return {name: find_method(name) for name in METHOD_CONFIGS}


def inject(model: PreTrainedModel, config: MethodConfig, seed: int) -> Injection:
    """Attaches a new adapter of the configured method. Afterwards only the adapter's tensors require gradients.

    Raises:
        ConfigError: The configuration does not fit the model.
    """
    packed = next((name for name, module in model.named_modules() if isinstance(module, PackedLinear)), None)
    if packed is not None and not config.base_is_read_only:
        message = f"{config.type!r} needs the base's own layers, but {packed} is stored packed, so it cannot be used."
        raise ConfigError(Problem("method.type", message, "load the base unquantized, or use a method such as lora"))
    return find_method(config.type).attach(model, config, seed)
