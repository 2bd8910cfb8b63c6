"""Trains parameters of the base through float32 copies, so that the base itself is unchanged.

Used wherever weights are trained rather than added to: `modules_to_save`, biases, norms, full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterWrapper, set_module
from lamina.compute.ops.row_forms import Parameters, RowForm
from lamina.errors import ConfigError, Problem
from lamina.structure.reach import modules_out_of_reach


class TrainedCopy(AdapterWrapper):
    """A module of the base that computes with trained copies of some of its parameters.

    Attributes:
        copies: The trained parameters, float32; the forward rounds them to the base's dtype.
    """

    def __init__(
        self, base: nn.Module, names: Sequence[str], shared: Mapping[torch.Tensor, nn.Parameter] | None = None
    ) -> None:
        """
        Args:
            base: A module of the model.
            names: Names of its parameters to train, as in `base.named_parameters()`.
            shared: For parameters of the base that another module also has (a tied head): their shared copy.
        """
        super().__init__(base)
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
        """Runs the base module with the copies in place of its own parameters."""
        if not self.enabled:
            return self.base(*args, **kwargs)
        own = dict(self.base.named_parameters())
        values = {name: copy.to(own[name].dtype) for name, copy in zip(self._names, self.copies, strict=True)}
        return functional_call(self.base, values, args, kwargs)

    @property
    def replaced(self) -> list[nn.Parameter]:
        """The parameters of the base that the copies replace."""
        own = dict(self.base.named_parameters())
        return [own[name] for name in self._names]

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return dict(zip(self._names, self.copies, strict=True))

    def row_forms(self) -> tuple[RowForm, ...]:
        return (Parameters(dict(zip(self._names, self.copies, strict=True))),)

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        for key, copy in zip(self._names, self.copies, strict=True):
            owner, _, leaf = key.rpartition(".")
            module = self.base.get_submodule(owner)
            # A new tensor rather than a copy into the old one, whose memory another module may share.
            value = copy.detach().to(getattr(module, leaf).dtype)
            setattr(module, leaf, nn.Parameter(value.clone(), requires_grad=False))
        set_module(model, name, self.base)


def without_uncalled(model: PreTrainedModel, chosen: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Drops modules that do not run on a text from `chosen` (see `train_parameters`): their copies would do nothing."""
    silent = modules_out_of_reach(model)
    return {name: keys for name, keys in chosen.items() if name not in silent}


def count_replaced(model: nn.Module) -> int:
    """Counts the elements of the base's parameters that trained copies replace; shared parameters count once."""
    copies = [module for module in model.modules() if isinstance(module, TrainedCopy)]
    return sum({id(parameter): parameter.numel() for copy in copies for parameter in copy.replaced}.values())


def train_parameters(
    model: PreTrainedModel,
    chosen: Mapping[str, Sequence[str]],
    wrap: type[TrainedCopy] = TrainedCopy,
) -> dict[str, TrainedCopy]:
    """Wraps modules of `model` in trained copies. A shared parameter, such as a tied head's, gets one copy.

    Args:
        model: A model without adapters.
        chosen: Module name -> names of its own parameters to train, in the model's order.
        wrap: `TrainedCopy`, or a subclass with other names for its tensors.

    Returns:
        The wrappers by module name.

    Raises:
        ConfigError: A parameter is quantized, so it cannot be trained.
    """
    shared: dict[torch.Tensor, nn.Parameter] = {}
    layers: dict[str, TrainedCopy] = {}
    for name in reversed(list(chosen)):  # inner modules are wrapped before the module that contains them
        module = model.get_submodule(name)
        own = dict(module.named_parameters(recurse=False))
        packed = [key for key in chosen[name] if not own[key].is_floating_point()]
        if packed:
            message = f"{name}.{packed[0]} is stored quantized ({own[packed[0]].dtype}), so it cannot be trained."
            raise ConfigError(Problem("method.type", message, "load the base unquantized, or train an adapter"))
        layers[name] = wrap(module, chosen[name], shared)
        shared |= {own[key]: copy for key, copy in zip(chosen[name], layers[name].copies, strict=True)}
        set_module(model, name, layers[name])
    return {name: layers[name] for name in chosen}
