"""A model's structure without its weights, to plan with it before anything is loaded."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.machine.quiet import quiet_transformers


def build_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """Builds a model of the same class and configuration on the meta device: shapes and dtypes, but no memory.

    Modules that were put into `model`, such as an adapter or packed layers, are not in it.
    """
    with torch.device("meta"), quiet_transformers():
        return type(model)._from_config(model.config, dtype=model.dtype).eval().requires_grad_(False)


def with_memory(skeleton: PreTrainedModel) -> PreTrainedModel:
    """Replaces the meta tensors by zeros on the CPU, which take memory only once they are written."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in skeleton.modules():
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is None:
                continue
            if tensor not in made:  # tied weights stay tied
                zeros = torch.zeros_like(tensor, device="cpu")
                made[tensor] = nn.Parameter(zeros, False) if isinstance(tensor, nn.Parameter) else zeros
            setattr(module, name, made[tensor])
    return skeleton
