"""What the linear layers of a model are given, when it runs over a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

# Is told a layer's input, (T, in_features).
Take = Callable[[torch.Tensor], None]


def with_same_input(model: PreTrainedModel, layers: Mapping[str, nn.Module], document: torch.Tensor) -> list[list[str]]:
    """The layers' names, those together that are called with the same tensor; without those that are not called.

    Args:
        model: With the layers in it.
        layers: By name.
        document: Token ids (1, T).
    """
    inputs: dict[str, torch.Tensor] = {}

    def keeper(name: str) -> Take:
        def keep(x: torch.Tensor) -> None:
            inputs[name] = x

        return keep

    run_once(model, document, {layer: keeper(name) for name, layer in layers.items()})
    together: dict[tuple[int, torch.Size], list[str]] = {}
    for name, x in inputs.items():
        together.setdefault((x.data_ptr(), x.shape), []).append(name)
    return list(together.values())


@torch.no_grad()
def run_once(model: PreTrainedModel, document: torch.Tensor, takers: Mapping[nn.Module, Take]) -> None:
    """Runs the model, and hands over the input of each of the layers that are named.

    Args:
        model: With the layers in it. Its head runs only if it is one of them.
        document: Token ids (1, T).
        takers: Layer -> what is told its input.
    """

    def hook(take: Take) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda layer, inputs: take(inputs[0].flatten(0, -2))

    handles = [layer.register_forward_pre_hook(hook(take)) for layer, take in takers.items()]
    decoder = model.get_decoder()
    head_is_asked = any(layer is model.get_output_embeddings() for layer in takers)
    try:
        (model if decoder is None or head_is_asked else decoder)(input_ids=document, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
