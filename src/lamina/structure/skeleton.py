"""A model's structure without its weights, to find out what would fit before anything is spent on it."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.machine.quiet import quiet_transformers


def build_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and configuration whose tensors have shapes and dtypes, but no memory.

    Whatever was put into `model` is not in it, be it an adapter or packed layers.
    """
    with torch.device("meta"), quiet_transformers():
        return type(model)._from_config(model.config, dtype=model.dtype).eval().requires_grad_(False)


def with_memory(skeleton: PreTrainedModel) -> PreTrainedModel:
    """The same with zeros, which take up memory once they are written to and not before."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in skeleton.modules():
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is None:
                continue
            if tensor not in made:  # tied weights stay so
                zeros = torch.zeros_like(tensor, device="cpu")
                made[tensor] = nn.Parameter(zeros, False) if isinstance(tensor, nn.Parameter) else zeros
            setattr(module, name, made[tensor])
    return skeleton
