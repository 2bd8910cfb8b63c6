"""What the linear layers of a model are given, when it runs over a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedModel

from lamina.structure.layers import text_decoder

# Is told a layer's input, (1, T, in_features).
Take = Callable[[torch.Tensor], None]


def with_same_input(model: PreTrainedModel, layers: Mapping[str, nn.Module], document: torch.Tensor) -> list[list[str]]:
    """The layers' names, those together that are called with the same tensor; without those that are not called.

    Args:
        model: With the layers in it.
        layers: By name.
        document: Token ids (1, T).
    """
    together: list[list[str]] = []
    seen: set[str] = set()
    # Weak, so that no input outlives its use: those of all layers together would take gigabytes.
    takers_of: MutableMapping[torch.Tensor, list[str]] = WeakIdKeyDictionary()

    def joiner(name: str) -> Take:
        def join(x: torch.Tensor) -> None:
            if name in seen:  # a layer that is called again, as shared ones are
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
    """Runs the model, and hands over the input of each of the layers that are named.

    Args:
        model: With the layers in it. Its head runs only if it is one of them.
        document: Token ids (1, T).
        takers: Layer -> what is told its input.
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
