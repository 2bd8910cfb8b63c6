"""Captures the inputs of a model's linear layers while it runs on a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from lamina.structure.layers import text_decoder

# A callback that gets a layer's input, (1, T, in_features).
Take = Callable[[torch.Tensor], None]


def with_same_input(model: PreTrainedModel, layers: Mapping[str, nn.Module], document: torch.Tensor) -> list[list[str]]:
    """Groups the layers that are called with the same tensor. Layers that are not called are left out.

    Args:
        model: The model that contains the layers.
        layers: The layers by name.
        document: Token ids (1, T).

    Returns:
        The names of each group.
    """
    together: list[list[str]] = []
    seen: set[str] = set()
    # Weak references, so that each input is freed after use: the inputs of all layers would take gigabytes.
    takers_of: MutableMapping[torch.Tensor, list[str]] = WeakIdKeyDictionary()

    def joiner(name: str) -> Take:
        def join(x: torch.Tensor) -> None:
            if name in seen:  # a shared layer is called several times
                return
            seen.add(name)
            if x not in takers_of:
                takers_of[x] = []
                together.append(takers_of[x])
            takers_of[x].append(name)

        return join

    run_once(model, document, {layer: joiner(name) for name, layer in layers.items()})
    return together


@torch.no_grad()
def run_once(model: PreTrainedModel, document: torch.Tensor, takers: Mapping[nn.Module, Take]) -> None:
    """Runs the model on a document, and passes each layer's input to its callback.

    Args:
        model: The model that contains the layers. Its head runs only if it is one of them.
        document: Token ids (1, T).
        takers: Layer -> callback.
    """

    def hook(take: Take) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda layer, inputs: take(inputs[0])

    handles = [layer.register_forward_pre_hook(hook(take)) for layer, take in takers.items()]
    head_is_asked = any(layer is model.get_output_embeddings() for layer in takers)
    try:
        (model if head_is_asked else text_decoder(model))(input_ids=document, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
