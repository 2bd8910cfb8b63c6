"""Copies of a model that share its tensors: another tree of modules over the same weights.

An adapter can be attached to a copy while the model itself, or other copies with other adapters, go on running.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.ops.adapter import AdapterModule, set_module
from lamina.structure.layers import text_decoder


def shared_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copies a model's modules, and shares all parameters and buffers with the original."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    # Tensors that modules hold as plain attributes, such as the rotary frequencies before scaling.
    held = (value for module in model.modules() for value in vars(module).values())
    tensors += [value for value in held if isinstance(value, torch.Tensor)]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for module in twin.modules():
        module.__dict__.pop("forward", None)  # one that was replaced while the original was fused
    return twin


def bare_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same without adapters: the base, in evaluation mode, over the base's own weights."""
    twin = shared_copy(model)
    while True:
        adapters = [(name, module) for name, module in twin.named_modules() if isinstance(module, AdapterModule)]
        if not adapters:
            return twin.eval()
        name, adapter = adapters[0]
        if adapter.virtual_tokens:
            _unhook(twin, name)
            continue
        base = adapter.base_module
        base = getattr(adapter, "base", None) if base is None else base
        if isinstance(base, nn.Module):
            set_module(twin, name, base)
        else:  # it holds tensors for others, and replaced nothing
            parent, _, child = name.rpartition(".")
            delattr(twin.get_submodule(parent), child)


def _unhook(model: PreTrainedModel, name: str) -> None:
    """Takes virtual tokens out: their module, and their hooks on the decoder."""
    delattr(model, name)
    for module in {model, text_decoder(model)}:
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [
                key for key, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), AdapterModule)
            ]:
                del hooks[key]
                for others in (module._forward_pre_hooks_with_kwargs, module._forward_hooks_with_kwargs):
                    others.pop(key, None)
