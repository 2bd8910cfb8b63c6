"""Where a model keeps its decoder layers: the one place that knows."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that a text passes one after the other, in their order; empty where it is not
    clear which list of parts that is.

    Not those of a vision or audio tower, an encoder, a mixture's experts or further heads, however many they are.

    Args:
        model: With or without an adapter, also without weights (on the meta device).
    """
    return list(_layer_list(text_decoder(model), _declared(model)))


def text_decoder(model: PreTrainedModel) -> nn.Module:
    """The part of a model in which its decoder layers are: without output head, and without towers for other inputs.

    `get_decoder` is transformers' best guess: of some models it gives the whole, of some the output head.
    """
    head = model.get_output_embeddings()
    inside = next((part for part in model.children() if isinstance(part, PreTrainedModel)), model)
    guesses = (model.get_decoder(), model.base_model, inside)
    return next((part for part in guesses if part is not model and part is not head), model)


def _layer_list(decoder: nn.Module, declared: int | None) -> nn.ModuleList:
    """The list of as many parts as the configuration names layers, else the outermost; if it is alone."""
    lists: dict[str, nn.ModuleList] = {}
    for name, module in decoder.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)  # such as a layer's experts
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
