"""Finds the decoder layers of a model. No other file knows where a model keeps them."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Finds the layers of the text decoder, in order; empty if it is ambiguous which module list they are.

    The layers of a vision or audio tower or of an encoder, experts, and additional heads are not decoder layers.

    Args:
        model: The model, with or without an adapter; may be on the meta device.
    """
    return list(_layer_list(text_decoder(model), _declared(model)))


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """Finds the module that contains the decoder layers, without the output head and towers for other inputs.

    transformers' `get_decoder` is only a guess: for some models it returns the whole model, for some the output head.
    """
    head = model.get_output_embeddings()
    inside = next((part for part in model.children() if isinstance(part, PreTrainedModel)), model)
    guesses = (model.get_decoder(), model.base_model, inside)
    return next((part for part in guesses if part is not model and part is not head), model)


def _layer_list(decoder: nn.Module, declared: int | None) -> nn.ModuleList:
    """Finds the module list with as many entries as the configuration declares layers, else the outermost one.

    Returns an empty list if several qualify.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, module in decoder.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)  # for example a layer's experts
        if isinstance(module, nn.ModuleList) and not inside and len(module) > 0 and all(map(_has_parts, module)):
            lists[name] = module
    fitting = {name: module for name, module in lists.items() if len(module) == declared} or lists
    outermost = min((name.count(".") for name in fitting), default=0)
    alone = [module for name, module in fitting.items() if name.count(".") == outermost]
    return alone[0] if len(alone) == 1 else nn.ModuleList()


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _declared(model: PreTrainedModel) -> int | None:
    return getattr(model.config.get_text_config(), "num_hidden_layers", None)
