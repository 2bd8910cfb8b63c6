"""Parameters of the base that are trained: a float32 copy takes their place, and the base itself stays as it is.

For everything that trains weights rather than adding to them: `modules_to_save`, biases, norms, full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule, set_module
from lamina.compute.ops.row_forms import Parameters, RowForm
from lamina.errors import ConfigError, Problem
from lamina.structure.reach import modules_out_of_reach


class TrainedCopy(AdapterModule):
    """A module of the base that computes with trained copies of some of its parameters.

    Attributes:
        base: The module, unchanged.
        copies: The trained parameters, float32; they are rounded to the base's dtype when the module computes.
    """

    def __init__(
        self, base: nn.Module, names: Sequence[str], shared: Mapping[torch.Tensor, nn.Parameter] | None = None
    ) -> None:
        """
        Args:
            base: A module of the model.
            names: Its parameters to train, as in `base.named_parameters()`.
            shared: For parameters of the base that another module has too (a tied head): the copy they share.
        """
        super().__init__()
        self.base = base
        self._names = list(names)
        own = dict(base.named_parameters())
        shared = shared or {}
        self.copies = nn.ParameterList(
            [
                shared[own[name]] if own[name] in shared else nn.Parameter(own[name].detach().float().clone())
                for name in names
            ]
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base module computes, with the copies in place of its own parameters."""
        if not self.enabled:
            return self.base(*args, **kwargs)
        own = dict(self.base.named_parameters())
        values = {name: copy.to(own[name].dtype) for name, copy in zip(self._names, self.copies, strict=True)}
        return functional_call(self.base, values, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # Model code looks at a module's weight for its dtype, at an embedding's padding index, and so on.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    @property
    def replaced(self) -> list[nn.Parameter]:
        """The parameters of the base that its copies stand in for."""
        own = dict(self.base.named_parameters())
        return [own[name] for name in self._names]

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return dict(zip(self._names, self.copies, strict=True))

    def row_forms(self) -> tuple[RowForm, ...]:
        return (Parameters(dict(zip(self._names, self.copies, strict=True))),)

    @property
    def base_module(self) -> nn.Module:
        return self.base

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        for key, copy in zip(self._names, self.copies, strict=True):
            owner, _, leaf = key.rpartition(".")
            module = self.base.get_submodule(owner)
            # A new tensor, not a copy into the old one: another module may share the old one's memory.
            value = copy.detach().to(getattr(module, leaf).dtype)
            setattr(module, leaf, nn.Parameter(value.clone(), requires_grad=False))
        set_module(model, name, self.base)


def without_uncalled(model: PreTrainedModel, chosen: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Of `chosen`, as `train_parameters` takes it, what is called when the model runs over a text: copies of others
    would have no effect."""
    silent = modules_out_of_reach(model)
    return {name: keys for name, keys in chosen.items() if name not in silent}


def count_replaced(model: nn.Module) -> int:
    """Elements of the base's parameters that trained copies stand in for; one that is shared counts once."""
    copies = [module for module in model.modules() if isinstance(module, TrainedCopy)]
    return sum({id(parameter): parameter.numel() for copy in copies for parameter in copy.replaced}.values())


def train_parameters(
    model: PreTrainedModel,
    chosen: Mapping[str, Sequence[str]],
    wrap: type[TrainedCopy] = TrainedCopy,
) -> dict[str, TrainedCopy]:
    """Puts trained copies into `model`. A parameter that several modules have, such as a tied head's, gets one copy.

    Args:
        model: A model without adapters.
        chosen: By module, in the model's order, the names of its own parameters to train.
        wrap: `TrainedCopy`, or a subclass with other names for its tensors.

    Returns:
        What was put in, by module.

    Raises:
        ConfigError: A parameter is stored in a form that cannot be trained.
    """
    shared: dict[torch.Tensor, nn.Parameter] = {}
    layers: dict[str, TrainedCopy] = {}
    for name in reversed(list(chosen)):  # what a module holds goes in before the module itself is wrapped
        module = model.get_submodule(name)
        own = dict(module.named_parameters(recurse=False))
        packed = [key for key in chosen[name] if not own[key].is_floating_point()]
        if packed:
            message = f"{name}.{packed[0]} is stored quantized ({own[packed[0]].dtype}), and so cannot be trained."
            raise ConfigError(Problem("method.type", message, "load the base unquantized, or train an adapter"))
        layers[name] = wrap(module, chosen[name], shared)
        shared |= {own[key]: copy for key, copy in zip(chosen[name], layers[name].copies, strict=True)}
        set_module(model, name, layers[name])
    return {name: layers[name] for name in chosen}
