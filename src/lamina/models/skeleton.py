"""A model's structure without its weights, to find out what would fit before anything is spent on it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from lamina.models.quiet import quiet_transformers


def build_skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and configuration whose tensors have shapes and dtypes, but no memory.

    Whatever was put into `model` is not in it, be it an adapter or packed layers.
    """
    with torch.device("meta"), quiet_transformers():
        return type(model)._from_config(model.config, dtype=model.dtype).eval().requires_grad_(False)
