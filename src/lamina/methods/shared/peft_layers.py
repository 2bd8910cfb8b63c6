"""peft's own layers in a model, and the small modules of `base.py`'s contract that stand for them."""

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
    """Stands for one of the layers that peft has put into the model, and for those inside it."""

    def __init__(
        self,
        layer: Any,
        trained: Mapping[str, nn.Parameter],
        fixed: Mapping[str, torch.Tensor],
    ) -> None:
        """
        Args:
            layer: peft's `BaseTunerLayer` or `AuxiliaryTrainingWrapper`, in its place in the model.
            trained: Its trained tensors, by the names that peft saves them under.
            fixed: What peft saves beside them.
        """
        # In tuples and dictionaries, because these belong to peft's layer and not to this module; and before
        # `enabled` is set, which is passed on to that layer.
        self._layer = (layer,)
        super().__init__()
        self._trained = dict(trained)
        self._fixed = dict(fixed)

    @property
    def enabled(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether peft's layer takes part."""
        return not self._layer[0].disable_adapters

    @enabled.setter
    def enabled(self, value: bool) -> None:
        # peft asks for gradients again whenever it switches a layer on, also where nothing is trained.
        asked = [(parameter, parameter.requires_grad) for parameter in self._layer[0].parameters()]
        for module in self._layer[0].modules():  # of several parameters of one module, each has a layer around the last
            if _is_layer(module):
                module.enable_adapters(value)
        for parameter, requires_grad in asked:
            parameter.requires_grad_(requires_grad)

    @property
    def is_target(self) -> bool:
        """Whether `target_modules` selects the module, rather than a field for whole modules or bare parameters."""
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
        """Those that peft calls B: `lora_B.weight`, `hira_B`, ..."""
        return [key for key in self._trained if any(part.endswith("_B") for part in key.split("."))]

    @property
    def base_module(self) -> nn.Module:
        from peft.utils import AuxiliaryTrainingWrapper

        layer = self._layer[0]
        return layer.original_module if isinstance(layer, AuxiliaryTrainingWrapper) else layer.get_base_layer()

    @torch.no_grad()
    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        set_module(model, name, _folded(self._layer[0]).requires_grad_(False))


class PeftLayerApart(PeftLayer):
    """The same, of a method whose layers peft cannot merge."""

    merges = False


class PeftShared(AdapterModule):
    """Tensors that belong to all of peft's layers together, such as a bank of vectors."""

    def __init__(self, trained: Mapping[str, nn.Parameter], fixed: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._trained = dict(trained)
        self._fixed = dict(fixed)

    def adapter_tensors(self) -> dict[str, nn.Parameter]:
        return self._trained

    def fixed_tensors(self) -> dict[str, torch.Tensor]:
        return self._fixed

    def row_forms(self) -> tuple[RowForm, ...]:
        """Nothing: the layers that use the tensors say so."""
        return ()

    def fold_in(self, model: PreTrainedModel, name: str) -> None:
        """Nothing: the layers that use the tensors fold them in."""


def _is_layer(module: nn.Module) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _chain(layer: Any) -> list[Any]:
    """A layer of peft, the one it stands around, and so on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    chain, inner = [layer], layer
    while isinstance(layer, BaseTunerLayer) and isinstance(inner := inner.base_layer, BaseTunerLayer):
        chain.append(inner)
    return chain


def _folded(layer: Any) -> nn.Module:
    """The base's module with what a layer of peft, and those inside it, add to its weights."""
    from peft.utils import AuxiliaryTrainingWrapper

    if isinstance(layer, AuxiliaryTrainingWrapper):
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    module = layer.get_base_layer()
    for name, inner in outermost_layers(module).items():
        set_module(module, name, _folded(inner))
    # peft adds in the base's dtype; in float32 the sum is rounded once, as for lamina's own methods.
    dtypes = {key: parameter.dtype for key, parameter in module.named_parameters()}
    _retype(module, dict.fromkeys(dtypes, torch.float32))
    for each in _chain(layer):
        each.merge()
    module = layer.get_base_layer()  # may be another one now
    _retype(module, dtypes)
    return module


def outermost_layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers in a module, by name, but for those inside others."""
    places: dict[str, Any] = {}
    for name, module in model.named_modules():
        if _is_layer(module) and not any(name.startswith(f"{outer}.") for outer in places):
            places[name] = module
    return places


def merges(layer: Any, config: PeftConfig) -> bool:
    """Whether peft can fold a layer in, which it does not say before it tries."""
    from peft.utils import AuxiliaryTrainingWrapper

    if isinstance(layer, AuxiliaryTrainingWrapper):
        return True
    adds_bias = config.peft_type == "BEFT" or bool(config.fields.get("lora_bias"))
    has_bias = "bias" in dict(layer.get_base_layer().named_parameters(recurse=False))
    return config.peft_type != "LILY" and not (adds_bias and not has_bias)


def _retype(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Puts new parameters of other dtypes in the place of a module's; they may share their memory with others."""
    for name, dtype in dtypes.items():
        owner, _, leaf = name.rpartition(".")
        value = getattr(module.get_submodule(owner), leaf).detach().to(dtype, copy=True)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
