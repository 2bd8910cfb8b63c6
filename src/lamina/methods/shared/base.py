"""What a method is, and what it leaves in a model.

A method's file defines `METHOD`, an instance of a `Method` subclass; discovery finds it by the file's name, which is
also the name of its configuration in `config/methods/`.
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

# HF peft saves an adapter's tensors under this prefix, and so does lamina, in checkpoints too.
PEFT_PREFIX = "base_model.model."


class Hooks:
    """What a method does around a step of the training loop. These do nothing."""

    def penalty(self) -> torch.Tensor | None:
        """A scalar that is added to the loss, once a step."""
        return None

    def before_update(self, step: int) -> None:
        """The gradients of step `step` (from 1) are there, clipped; the optimizer follows."""

    def after_update(self, step: int) -> None:
        """The optimizer has moved the tensors; their gradients are still there."""

    def is_settled(self) -> bool:
        """Whether the adapter has the form that the method promises; before that, no evaluation makes it the best."""
        return True

    def figures(self) -> dict[str, Any]:
        """What the run's summary says of the method; JSON values."""
        return {}

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a resumed run needs to go on alike."""
        return {}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts back what `state` gave."""


@dataclass(frozen=True)
class Saved:
    """An adapter as it is written.

    Attributes:
        config: The configuration that it is to be loaded with.
        tensors: By their names in the HF PEFT format.
    """

    config: MethodConfig
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Injection:
    """An adapter attached to a model.

    Attributes:
        model: The model it is attached to.
        config: The method's configuration.
        layers: What was put in, by the names of the modules that it replaced, in the model's order. What belongs to the
            model as a whole has the name "", and its tensors no prefix.
        left_out: Modules that the method goes on by itself, but for that a text does not call them.
        useless: Sentences about settings that select nothing. An adapter is not begun with them, but it can be loaded.
    """

    model: PreTrainedModel
    config: MethodConfig
    layers: Mapping[str, AdapterModule]
    left_out: Sequence[str] = ()
    useless: Sequence[str] = ()

    def tensors(self) -> dict[str, nn.Parameter]:
        """All trained tensors, by their names in the HF PEFT format. One that two layers share is there once."""
        named: dict[str, nn.Parameter] = {}
        seen: set[int] = set()
        for name, layer in self.layers.items():
            for key, tensor in layer.adapter_tensors().items():
                if id(tensor) not in seen:
                    named[tensor_name(name, key)] = tensor
                    seen.add(id(tensor))
        return named

    def saved_tensors(self) -> dict[str, torch.Tensor]:
        """The trained tensors, and those that are saved beside them."""
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
        """Names of the tensors that LoRA+ gives a larger learning rate."""
        return {tensor_name(name, key) for name, layer in self.layers.items() for key in layer.fast_tensors()}

    def vocabulary_tensors(self) -> set[str]:
        """Names of the tensors that are embeddings, or belong to the input embedding or to the output head."""
        ends = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        return {
            tensor_name(name, key)
            for name, layer in self.layers.items()
            for key in (layer.adapter_tensors() if layer in ends else layer.embedding_tensors())
        }

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies tensors in, the trained ones or all saved ones; `adapter.check_tensors` checks names and shapes."""
        trained = self.tensors()
        for name, tensor in self.saved_tensors().items():
            if name in trained or name in tensors:
                tensor.copy_(tensors[name])

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


def tensor_name(module: str, key: str) -> str:
    """The name of a module's tensor in the HF PEFT format; what belongs to the whole model has no prefix."""
    return f"{PEFT_PREFIX}{module}.{key}" if module else key


class Method(ABC):
    """One PEFT method.

    Attributes:
        in_peft: Whether HF peft knows the method, so that it can load what is saved.
        peft_takes_conv1d: Whether HF peft has it for GPT-2's `Conv1D` too, which holds its weight transposed.
        starts_as_base: Whether a fresh adapter leaves the model's output as it is.
        draws: Whether a fresh adapter depends on the seed.
        needs_biases: Whether it only fits models that have biases.
        fallback: Whether it reads the peft configurations that no other method reads, and so is asked last.
    """

    in_peft: ClassVar[bool] = True
    peft_takes_conv1d: ClassVar[bool] = True
    starts_as_base: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    needs_biases: ClassVar[bool] = False
    fallback: ClassVar[bool] = False

    def check(self, model: PreTrainedModel, config: Any) -> None:
        """Checks what only matters where an adapter is begun, and not where one is loaded, before `attach`.

        Raises:
            ConfigError: No adapter should be begun with this configuration on this model.
        """
        return

    @abstractmethod
    def attach(self, model: PreTrainedModel, config: Any, seed: int) -> Injection:
        """Puts a fresh adapter into `model`, initialised from `seed`.

        Raises:
            ConfigError: The configuration does not fit the model.
        """

    def leaves_out(self, config: Any, name: str) -> bool:
        """Whether settings of the user's leave a module out of those that `target_modules: all-linear` selects."""
        return False

    def plan_loftq(self, config: Any) -> Callable[[PreTrainedModel], LoftqPlan] | None:
        """What LoftQ splits of a base that is quantized for this adapter, given the model without weights.

        Raises:
            ConfigError: When it is called: the configuration does not fit the model.
        """
        return None

    def prepare(self, injection: Injection, documents: Sequence[torch.Tensor]) -> Injection:
        """Fits a fresh adapter to the training data, before anything is trained.

        Args:
            injection: From `attach`.
            documents: Token ids (1, T) of each training document, made when it is asked for.

        Returns:
            The adapter to train: the same one, or one in its place.
        """
        return injection

    def hooks(self, injection: Injection, total_steps: int) -> Hooks:
        """What the method does around each of `total_steps` steps."""
        return Hooks()

    def saved(self, injection: Injection) -> Saved:
        """The adapter as it is to be written; the model is left as it is."""
        return Saved(injection.config, injection.saved_tensors())

    def begun(self, config: Any) -> Any:
        """The configuration of an adapter whose tensors are there, so that it matters no more how they began."""
        return config

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
    return plugins.load_member("methods", name).METHOD


def all_methods() -> dict[str, Method]:
    """Every method by its name."""
    return {name: find_method(name) for name in METHOD_CONFIGS}


def inject(model: PreTrainedModel, config: MethodConfig, seed: int) -> Injection:
    """Attaches a fresh adapter of the configured method. Only the adapter's tensors ask for gradients afterwards.

    Raises:
        ConfigError: The configuration does not fit the model.
    """
    packed = next((name for name, module in model.named_modules() if isinstance(module, PackedLinear)), None)
    if packed is not None and not config.base_is_read_only:
        message = f"{config.type!r} needs the base's own layers, but {packed} is stored packed, so it cannot be used."
        raise ConfigError(Problem("method.type", message, "load the base unquantized, or use a method such as lora"))
    return find_method(config.type).attach(model, config, seed)
