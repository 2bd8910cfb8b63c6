"""Where a model's weights lie: in linear layers, stacked in one tensor as a mixture's experts are, or elsewhere.

Embeddings and the output head are counted apart: they stay as they are whatever is packed or adapted, and in small
models they are most of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import nn
from transformers import PreTrainedModel

from lamina.compute.weights.packed import PackedLinear
from lamina.quantization.report import Packing

OUTSIDE = "outside of embeddings and head"

# In a mixture, peft takes linear layers of these names for the experts that transformers 4 had by them
# (peft/utils/transformers_weight_conversion.py), so that those of a shared expert cannot be named.
_TAKEN_FOR_EXPERTS = {"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"}


def weights_by_module(model: PreTrainedModel, without: Collection[int] = ()) -> dict[str, int]:
    """How many weights each module itself holds, packed ones included; embeddings and output head are left out.

    Args:
        model: With or without an adapter.
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
        if count:
            found[name] = count
    return found


def stacked_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Parameters that hold several matrices each, by name: a mixture's experts. No linear layer has any."""
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.{key}": parameter
        for name, module in model.named_modules()
        if not isinstance(module, convolutions)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and min(parameter.shape) > 1
    }


def find_packing(model: PreTrainedModel, modules: Iterable[str]) -> Packing:
    """How much of a model the quantized modules of these names are; they need not be quantized yet."""
    chosen, weights = set(modules), weights_by_module(model)
    left = summed_up({name: count for name, count in weights.items() if name not in chosen})
    return Packing(sum(weights.values()), sum(weights.values()) - sum(left.values()), left)


def packed_modules(model: nn.Module) -> list[str]:
    """Names of the modules whose weights are packed."""
    return [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]


def way_to_stacked(model: PreTrainedModel, linears: Iterable[str]) -> str:
    """The `method:` that adapts a model's stacked weights, beside those linear layers of these names that peft can."""
    parameters = ", ".join(dict.fromkeys(inside_layer(name) for name in stacked_weights(model)))
    modules = ", ".join(sorted({name.rpartition(".")[2] for name in linears} - _TAKEN_FOR_EXPERTS))
    targets = f"target_modules: [{modules}], " if modules else ""
    settings = f"type: peft, peft_type: LORA, r: 16, lora_alpha: 32, {targets}target_parameters: [{parameters}]"
    return f"`method: {{{settings}}}`"


def inside_layer(name: str) -> str:
    """A name from its layer on: `model.layers.0.mlp.experts` -> `mlp.experts`."""
    return re.sub(r"^.*\.\d+\.", "", name)


def summed_up(counts: Mapping[str, int]) -> dict[str, int]:
    """The same of all layers together, by one name: `model.layers.*.mlp.experts`; the largest first."""
    together: dict[str, int] = {}
    for name, count in counts.items():
        key = re.sub(r"\.\d+(?=\.|$)", ".*", name)
        together[key] = together.get(key, 0) + count
    return dict(sorted(together.items(), key=lambda item: -item[1]))


def listed(counts: Mapping[str, int], unit: str, most: int = 4) -> str:
    """Names with their counts in words, no more than so many: `a (2 modules), b (1 module) and 3 more`."""
    shown = [f"{name} ({count:,} {unit}{'' if count == 1 else 's'})" for name, count in list(counts.items())[:most]]
    more = f" and {len(counts) - most} more" if len(counts) > most else ""
    return ", ".join(shown) + more
