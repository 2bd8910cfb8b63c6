"""Merges an adapter into its base and saves the result, as a whole or weight by weight.

The sum W + D is computed in float32 and rounded once to the dtype of W. How much of D remains is measured for each
weight, because in bfloat16 a lightly trained adapter may be rounded away: half an ulp of W is up to 2^-8 of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule, set_module
from lamina.compute.ops.experts import PackedExperts, unpack_experts
from lamina.compute.weights import PackedLinear, unpack
from lamina.config import METHOD_CONFIGS
from lamina.errors import AdapterError
from lamina.machine.quiet import quiet_transformers
from lamina.methods.shared.base import Injection
from lamina.methods.shared.score import ScoreHead
from lamina.models.shards import ShardWriter

# Elements of a weight that are compared at once; the one that changed most is checked again in the saved file.
_ELEMENTS_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class FoldedWeight:
    """The result of merging the adapter's update D into a weight W, which becomes W'.

    Attributes:
        name: The weight's name in the model.
        size: |D|^2.
        kept: <W' - W, D>; equals `size` if nothing was lost to rounding.
        places: Flat indices of changed elements, one for each block of the weight.
        values: The values of W' at these indices.
    """

    name: str
    size: float
    kept: float
    places: torch.Tensor
    values: torch.Tensor


@dataclass(eq=False)
class Folds:
    """The result of merging an adapter.

    Attributes:
        modules: Number of merged modules.
        weights: The result for each weight that the adapter changes.
    """

    modules: int = 0
    weights: list[FoldedWeight] = field(default_factory=list)

    @property
    def kept(self) -> float | None:
        """The share of the adapter's update that remains after rounding; None if the update is zero."""
        size = sum(weight.size for weight in self.weights)
        return sum(weight.kept for weight in self.weights) / size if size else None

    def lost_in(self, model: PreTrainedModel) -> list[str]:
        """Lists the weights of a model that do not have the merged values."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return [
            weight.name
            for weight in self.weights
            if weight.name not in parameters
            or not torch.equal(parameters[weight.name].detach().flatten()[weight.places].cpu(), weight.values)
        ]


def fold_and_save(injection: Injection, folder: Path) -> Folds:
    """Merges the adapter and saves config and weights. The model must not be used afterwards.

    The weights of a packed base are dequantized one at a time, and freed after they are written.

    Raises:
        AdapterError: The method cannot be merged into weights; nothing was written.
    """
    model = injection.model
    model.config._name_or_path = ""
    packed = any(isinstance(module, PackedLinear) for module in model.modules())
    if any(isinstance(module, PackedExperts) for module in model.modules()):
        # Loading read experts from a file of ours; saving needs all conversions of the model's layout.
        model._weight_conversions = None  # pyright: ignore[reportAttributeAccessIssue]
    elif packed and not getattr(model, "_weight_conversions", None):
        return _fold_one_by_one(injection, folder)
    folded = fold_in(injection)
    unpack(model)  # the file's layout differs from the model's, and converting needs all weights at once
    with quiet_transformers():
        model.save_pretrained(folder)
    return folded


@torch.no_grad()
def fold_in(injection: Injection) -> Folds:
    """Merges each layer into its base weight, and puts the base modules back into the model.

    Raises:
        AdapterError: The method cannot be merged into weights; nothing was changed.
    """
    check_merges(injection)
    unpack_experts(injection.model)
    folds = Folds()
    ends = _fold_ends(injection, folds)
    for name, layer in injection.layers.items():
        if name not in ends:
            _fold(injection.model, name, layer, folds)
    return folds


@torch.no_grad()
def _fold_one_by_one(injection: Injection, folder: Path) -> Folds:
    check_merges(injection)
    model, writer, folds = injection.model, ShardWriter(folder), Folds()
    ends = _fold_ends(injection, folds)
    for name, layer in injection.layers.items():
        if name not in ends:
            _fold(model, name, layer, folds)
            _move_out(model, name, writer)
    for name in [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]:
        _move_out(model, name, writer)
    skipped = set(model.all_tied_weights_keys) | set(model._keys_to_ignore_on_save or ())
    for name, tensor in model.state_dict().items():
        if name not in skipped:
            writer.add(name, tensor)
    writer.close()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    return folds


def _fold(model: PreTrainedModel, name: str, layer: AdapterModule, folds: Folds) -> None:
    """Merges one layer in float32, rounds the result once, and measures how much of the update remains."""
    folds.modules += 1
    base = layer.base_module
    if base is None:
        layer.fold_in(model, name)
        return
    dtype = base.dtype if isinstance(base, PackedLinear) else next(base.parameters()).dtype
    before: dict[str, torch.Tensor] = {}
    for key, parameter in list(base.named_parameters()):
        before[key.replace("base_layer.", "")] = parameter  # the prefix of a nested layer of peft
        _put(base, key, nn.Parameter(parameter.float(), requires_grad=False))
    if isinstance(base, PackedLinear):
        before["weight"] = base.dense(torch.float32)
        base.dtype = torch.float32
    layer.fold_in(model, name)
    merged = model.get_submodule(name)
    for key, exact in list(merged.named_parameters()):
        old = before[key] if key in before else torch.zeros_like(exact)  # such as a new bias
        rounded = exact.detach().to(old.dtype if isinstance(old, nn.Parameter) else dtype)
        folds.weights.append(_measure(f"{name}.{key}", old.detach(), exact.detach(), rounded))
        # An unchanged weight keeps its tensor, which another module may share.
        same = isinstance(old, nn.Parameter) and torch.equal(old, rounded)
        _put(merged, key, old if same else nn.Parameter(rounded, requires_grad=False))  # pyright: ignore[reportArgumentType]
    if isinstance(merged, PackedLinear):
        merged.dtype = dtype


def _measure(name: str, old: torch.Tensor, exact: torch.Tensor, rounded: torch.Tensor) -> FoldedWeight:
    size = kept = 0.0
    places = []
    parts = (weight.flatten().split(_ELEMENTS_AT_ONCE) for weight in (old, exact, rounded))
    for number, (before, sum_, after) in enumerate(zip(*parts, strict=True)):
        added, left = sum_.float() - before.float(), after.float() - before.float()
        size += float(added @ added)
        kept += float(left @ added)
        places.append(number * _ELEMENTS_AT_ONCE + int(left.abs().argmax()))
    chosen = torch.tensor(places)
    return FoldedWeight(name, size, kept, chosen, rounded.flatten()[chosen.to(rounded.device)].cpu())


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, parameter)


def _move_out(model: PreTrainedModel, name: str, writer: ShardWriter) -> None:
    """Writes a module's dense weights, and removes the module from the model."""
    holder = nn.ModuleDict({"module": model.get_submodule(name)})
    unpack(holder)
    for key, parameter in holder["module"].named_parameters():
        writer.add(f"{name}.{key}", parameter)
        parameter.data = parameter.new_empty(0)  # the adapter's layer still has the module
    set_module(model, name, nn.Module())


def check_merges(injection: Injection) -> None:
    """Checks that an adapter can be merged.

    Raises:
        AdapterError: The method cannot be merged into weights.
    """
    for layer in injection.layers.values():
        if isinstance(layer, ScoreHead):
            raise AdapterError(f"the adapter is {layer.kind}. Fix: use it as an adapter.")
    if not all(layer.merges for layer in injection.layers.values()):
        title = METHOD_CONFIGS[injection.config.type].title
        raise AdapterError(
            f"{title} cannot be merged into the base's weights: it is not a change of weights. "
            "Fix: use it as an adapter."
        )


def _fold_ends(injection: Injection, folds: Folds) -> set[str]:
    """Merges the adapters on the embedding and on the head, which may be tied; returns their names."""
    model = injection.model
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted = {name: layer for name, layer in injection.layers.items() if model.get_submodule(name) in ends}
    for name, layer in adapted.items():
        _fold(model, name, layer, folds)
    if adapted:
        _settle_tie(model)
    return set(adapted)


def _settle_tie(model: PreTrainedModel) -> None:
    """Unties embedding and head if they now have different weights, so that saving keeps both."""
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head is None or embedding.weight is head.weight:
        return
    if model.config.get_text_config().tie_word_embeddings and torch.equal(embedding.weight, head.weight):
        model.tie_weights()  # trained as tied weights, they stay tied
        return
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    model._tied_weights_keys = None  # pyright: ignore[reportAttributeAccessIssue]
    model.all_tied_weights_keys = {}
