"""Folds an adapter into its base and writes the result, as a whole or one weight after the other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.config import METHOD_CONFIGS
from lamina.errors import AdapterError
from lamina.methods.base import AdapterModule, Injection, set_module
from lamina.models.quiet import quiet_transformers
from lamina.models.shards import ShardWriter
from lamina.quantization import PackedLinear, unpack


def fold_and_save(injection: Injection, folder: Path) -> int:
    """Folds the adapter in and writes config and weights; the model is of no use afterwards.

    Of a packed base, dense weights are made one at a time and let go once they are written.

    Returns:
        How many modules were folded in.

    Raises:
        AdapterError: The method adds something that no weight can hold; nothing was written.
    """
    model = injection.model
    model.config._name_or_path = ""
    packed = any(isinstance(module, PackedLinear) for module in model.modules())
    if packed and not getattr(model, "_weight_conversions", None):
        return _fold_one_by_one(injection, folder)
    folded = fold_in(injection)
    unpack(model)  # a file lays these weights out otherwise than the model, which takes all of them to undo
    with quiet_transformers():
        model.save_pretrained(folder)
    return folded


@torch.no_grad()
def fold_in(injection: Injection) -> int:
    """Puts what each layer adds into its base weight, and the base modules back into the model.

    Returns:
        How many modules were folded in.

    Raises:
        AdapterError: The method adds something that no weight can hold; nothing was changed.
    """
    _check_merges(injection)
    ends = _fold_ends(injection)
    for name, layer in injection.layers.items():
        if name not in ends:
            layer.fold_in(injection.model, name)
    return len(injection.layers)


@torch.no_grad()
def _fold_one_by_one(injection: Injection, folder: Path) -> int:
    _check_merges(injection)
    model, writer = injection.model, ShardWriter(folder)
    ends = _fold_ends(injection)
    for name, layer in injection.layers.items():
        if name not in ends:
            layer.fold_in(model, name)
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
    return len(injection.layers)


def _move_out(model: PreTrainedModel, name: str, writer: ShardWriter) -> None:
    """Writes a module's weights, dense, and leaves nothing of it in the model."""
    holder = nn.ModuleDict({"module": model.get_submodule(name)})
    unpack(holder)
    for key, parameter in holder["module"].named_parameters():
        writer.add(f"{name}.{key}", parameter)
        parameter.data = parameter.new_empty(0)  # the adapter's layer still has the module
    set_module(model, name, nn.Module())


def _check_merges(injection: Injection) -> None:
    if not all(layer.merges for layer in injection.layers.values()):
        title = METHOD_CONFIGS[injection.config.type].title
        raise AdapterError(
            f"{title} cannot be folded into the base's weights: no weight can hold what it adds. "
            "Fix: use the adapter as it is."
        )


def _fold_ends(injection: Injection) -> set[str]:
    """Folds in what is on the embedding and on the head, which may be one; gives their names."""
    model = injection.model
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    adapted = {name: layer for name, layer in injection.layers.items() if model.get_submodule(name) in ends}
    as_one = len(adapted) == 2 and _share_a_tensor(adapted.values())
    for name, layer in adapted.items():
        layer.fold_in(model, name)
    if adapted:
        _settle_tie(model, as_one)
    return set(adapted)


def _share_a_tensor(layers: Iterable[AdapterModule]) -> bool:
    one, other = ({id(tensor) for tensor in layer.adapter_tensors().values()} for layer in layers)
    return not one.isdisjoint(other)


def _settle_tie(model: PreTrainedModel, trained_as_one: bool) -> None:
    """Embedding and head may now have a weight each; saving must not take the one for the other."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or embedding.weight is head.weight:
        return
    if trained_as_one:
        model.tie_weights()  # of the same values, and as one they stay
        return
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False
    model._tied_weights_keys = None  # pyright: ignore[reportAttributeAccessIssue]
    model.all_tied_weights_keys = {}
