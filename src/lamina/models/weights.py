"""Counts a model's weights: in linear layers, stacked in one tensor (such as a mixture's experts), or elsewhere.

Embeddings and the output head are not counted: quantization and `all-linear` leave them unchanged, and in small models
they are most of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lamina.compute.ops.experts import PackedExperts
from lamina.compute.weights import PackedLinear, PackedStack, freeze_linear
from lamina.quantization.report import Packing

OUTSIDE = "outside of embeddings and head"


def weights_by_module(model: PreTrainedModel, without: Collection[int] = ()) -> dict[str, int]:
    """Counts the weights of each module itself, including packed ones, without embeddings and output head.

    Args:
        model: The model, with or without an adapter.
        without: `id` of parameters not to count, such as an adapter's.
    """
    head, seen, found = model.get_output_embeddings(), set(without), dict[str, int]()
    skipped: list[str] = []
    for name, module in model.named_modules():
        if module is head or isinstance(module, nn.Embedding):
            skipped.append(name)
        if any(name == other or name.startswith(f"{other}.") for other in skipped):
            continue
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(map(id, own))
        count = sum(parameter.numel() for parameter in own)
        if isinstance(module, PackedLinear):
            count += module.in_features * module.out_features
        if isinstance(module, PackedStack):
            count += module.numel()
        if count:
            found[name] = count
    return found


def stacked_weights(model: PreTrainedModel) -> dict[str, int]:
    """Counts the weights that stack several matrices in one tensor, by name: a mixture's experts."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.{key}": weight.numel()
        for name, module in model.named_modules()
        if not isinstance(module, convolutions)
        for key, weight in _own_weights(module).items()
        if len(weight.shape) == 3 and min(weight.shape) > 1
    }


def matrices(model: PreTrainedModel) -> list[str]:
    """Lists the weights with rows and columns that are not those of a linear layer or a convolution, by name."""
    skipped = (nn.Linear, Conv1D, PackedLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if not isinstance(module, skipped) or (isinstance(module, nn.Linear) and freeze_linear(module) is None)
        for key, weight in _own_weights(module).items()
        if name and len(weight.shape) in (2, 3)
    ]


def _own_weights(module: nn.Module) -> dict[str, nn.Parameter | PackedStack]:
    """A module's weights without those of the modules in it, in its order; packed experts count as their module's."""
    packed = module.experts.stacks if isinstance(module, PackedExperts) else {}
    return {**dict(module.named_parameters(recurse=False)), **packed}


def find_packing(model: PreTrainedModel, modules: Iterable[str]) -> Packing:
    """Computes how much of a model is quantized, or would be, given the names of the quantized modules."""
    chosen, weights = set(modules), weights_by_module(model)
    left = summed_up({name: count for name, count in weights.items() if name not in chosen})
    return Packing(sum(weights.values()), sum(weights.values()) - sum(left.values()), left)


def packed_modules(model: nn.Module) -> list[str]:
    """Lists the names of the modules with packed weights."""
    return [name for name, module in model.named_modules() if isinstance(module, PackedLinear | PackedStack)]


def way_to_stacked(model: PreTrainedModel) -> str:
    """Builds a `method:` that adapts a model's stacked weights, and all of its linear layers."""
    parameters = ", ".join(dict.fromkeys(inside_layer(name) for name in stacked_weights(model)))
    return f"`method: {{type: lora, r: 16, lora_alpha: 32, target_parameters: [{parameters}]}}`"


def inside_layer(name: str) -> str:
    """Removes the path of the layer from a name: `model.layers.0.mlp.experts` -> `mlp.experts`."""
    return re.sub(r"^.*\.\d+\.", "", name)


def summed_up(counts: Mapping[str, int]) -> dict[str, int]:
    """Sums counts over layers, under one name such as `model.layers.*.mlp.experts`; largest first."""
    together: dict[str, int] = {}
    for name, count in counts.items():
        key = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        together[key] = together.get(key, 0) + count
    return dict(sorted(together.items(), key=lambda item: -item[1]))


def listed(counts: Mapping[str, int], unit: str, most: int = 4) -> str:
    """Formats at most `most` names with their counts: `a (2 modules), b (1 module) and 3 more`."""
    shown = [f"{name} ({count:,} {unit}{'' if count == 1 else 's'})" for name, count in list(counts.items())[:most]]
    more = f" and {len(counts) - most} more" if len(counts) > most else ""
    return ", ".join(shown) + more
