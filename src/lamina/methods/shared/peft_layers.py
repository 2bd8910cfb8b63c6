"""Wraps peft's own layers in modules with the interface of `AdapterModule`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule, set_module
from lamina.compute.ops.row_forms import NotMixable, RowForm
from lamina.config.methods.peft import PeftConfig


class PeftLayer(AdapterModule):
    """Wraps one of the layers that peft put into the model, and the layers inside it."""

    def __init__(
        self,
        layer: Any,
        trained: Mapping[str, nn.Parameter],
        fixed: Mapping[str, torch.Tensor],
    ) -> None:
        """
        Args:
            layer: peft's `BaseTunerLayer` or `AuxiliaryTrainingWrapper` in the model.
            trained: The layer's trained tensors, by the names that peft saves them under.
            fixed: The tensors that peft saves but does not train.
        """
        # Stored in a tuple and in dictionaries, so that torch does not register them with this module: they belong to
        # peft's layer. And set before `enabled`, which is forwarded to that layer.
        self._layer = (layer,)
        super().__init__()
        self._trained = dict(trained)
        self._fixed = dict(fixed)

    @property
    def enabled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether peft's layer is applied."""
        return not self._layer[0].disable_adapters

    @enabled.setter
    def enabled(self, value: bool) -> None:
        # peft sets requires_grad whenever it enables a layer, also for tensors that are not trained.
        asked = [(parameter, parameter.requires_grad) for parameter in self._layer[0].parameters()]
        for module in self._layer[0].modules():  # for several parameters of one module, peft nests a layer for each
            if _is_layer(module):
                module.enable_adapters(value)
        for parameter, requires_grad in asked:
            parameter.requires_grad_(requires_grad)

    @property
    def is_target(self) -> bool:
        """Whether `target_modules` selected the module, rather than `modules_to_save` or `target_parameters`."""
        from peft.tuners.lora.layer import ParamWrapper
        from peft.utils import AuxiliaryTrainingWrapper

        return not isinstance(_chain(self._layer[0])[-1], ParamWrapper | AuxiliaryTrainingWrapper)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return self._trained

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return self._fixed

    def row_forms(self) -> tuple[RowForm, ...]:
        return (NotMixable("`type: peft` runs peft's own layers, which act on a whole batch"),)

    def fast_tensors(self) -> list[str]:
        """Names the tensors that peft calls B: `lora_B.weight`, `hira_B`, ..."""
        return [key for key in self._trained if any(part.endswith("_B") for part in key.split("."))]

    @property
    def base_module(self) -> nn.Module:
        from peft.utils import AuxiliaryTrainingWrapper

        layer = self._layer[0]
        return layer.original_module if isinstance(layer, AuxiliaryTrainingWrapper) else layer.get_base_layer()

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        set_module(model, name, _folded(self._layer[0]).requires_grad_(False))


class UnmergeablePeftLayer(PeftLayer):
    """A layer of a method whose layers peft cannot merge."""

    merges = False


class PeftShared(AdapterModule):
    """Tensors that all of peft's layers share, such as a bank of vectors."""

    def __init__(self, trained: Mapping[str, nn.Parameter], fixed: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._trained = dict(trained)
        self._fixed = dict(fixed)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return self._trained

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return self._fixed

    def row_forms(self) -> tuple[RowForm, ...]:
        """Returns nothing: the layers that use the tensors have the forms."""
        return ()

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        """Does nothing: the layers that use the tensors merge them."""


def _is_layer(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _chain(layer: Any) -> list[Any]:
    """Lists a layer of peft and the layers nested in it, from the outside in."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    chain, inner = [layer], layer
    while isinstance(layer, BaseTunerLayer) and isinstance(inner := inner.base_layer, BaseTunerLayer):
        chain.append(inner)
    return chain


def _folded(layer: Any) -> nn.Module:
    """Merges a layer of peft, and the layers inside it, into the base's module, and returns that module."""
    from peft.utils import AuxiliaryTrainingWrapper

    if isinstance(layer, AuxiliaryTrainingWrapper):
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    module = layer.get_base_layer()
    for name, inner in outermost_layers(module).items():
        set_module(module, name, _folded(inner))
    # peft would add in the base's dtype; in float32 the sum is rounded once, as for lamina's own methods.
    dtypes = {key: parameter.dtype for key, parameter in module.named_parameters()}
    _retype(module, dict.fromkeys(dtypes, torch.float32))
    for each in _chain(layer):
        each.merge()
    module = layer.get_base_layer()  # merging may have replaced it
    _retype(module, dtypes)
    return module


def outermost_layers(model: nn.Module) -> dict[str, Any]:
    """Finds peft's layers in a module, by name, without layers inside other layers."""
    places: dict[str, Any] = {}
    for name, module in model.named_modules():
        if _is_layer(module) and not any(name.startswith(f"{outer}.") for outer in places):
            places[name] = module
    return places


def remove_peft_layers(model: PreTrainedModel) -> None:
    """Puts the base's own modules back in the place of peft's layers, and of layers inside these."""
    from peft.utils import AuxiliaryTrainingWrapper

    while layers := outermost_layers(model):
        for name, layer in layers.items():
            is_wrapper = isinstance(layer, AuxiliaryTrainingWrapper)
            set_module(model, name, layer.original_module if is_wrapper else layer.get_base_layer())


def merges(layer: Any, config: PeftConfig) -> bool:
    """Whether peft can merge a layer, which peft itself reports only by failing."""
    from peft.utils import AuxiliaryTrainingWrapper

    if isinstance(layer, AuxiliaryTrainingWrapper):
        return True
    adds_bias = config.peft_type == "BEFT" or bool(config.fields.get("lora_bias"))
    has_bias = "bias" in dict(layer.get_base_layer().named_parameters(recurse=False))
    return config.peft_type != "LILY" and not (adds_bias and not has_bias)


def _retype(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Replaces a module's parameters by new ones of other dtypes, since the old ones may share memory with others."""
    for name, dtype in dtypes.items():
        owner, _, leaf = name.rpartition(".")
        value = getattr(module.get_submodule(owner), leaf).detach().to(dtype, copy=True)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
