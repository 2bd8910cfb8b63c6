"""The keyword arguments that a model is called with for a batch, in each layout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from lamina.compute.ops.shapes import repeating_size
from lamina.data.batch import Batch


def model_inputs(batch: Batch) -> dict[str, Any]:
    """Builds the keyword arguments for the model or its decoder.

    On the CPU and with lamina's attention, a filler document at the end rounds the length up to one that repeats (see
    `ops.shapes`). A model that runs its own attention gets as few arguments as possible, since it may accept nothing
    but token ids; it separates the documents of one sequence by their position ids, as transformers does.
    """
    layout = batch.layout
    if layout.own_attention and not layout.together:
        return {"input_ids": batch.input_ids, "use_cache": False}
    pads = batch.input_ids.device.type == "cpu" and batch.parts == 1
    filler = repeating_size(batch.tokens) - batch.tokens if pads else 0
    positions = torch.arange(filler, device=batch.input_ids.device)[None]
    inputs = {
        "input_ids": F.pad(batch.input_ids, (0, filler)),
        "position_ids": torch.cat([batch.position_ids, positions], dim=1),
        "use_cache": False,
    }
    if not layout.own_attention:
        lengths = batch.document_lengths
        inputs["document_lengths"] = [*lengths, filler] if filler else lengths
    return inputs
