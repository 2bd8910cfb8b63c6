"""Whether the activations of a micro-batch fit, which decides `gradient_checkpointing: auto`."""

from __future__ import annotations

import psutil
import torch
from transformers import PreTrainedModel

# Tensors that a decoder layer saves for its backward, in units of the hidden and of the intermediate width. Counted on
# Llama's layer (norms keep a float32 copy) and rounded up.
_HIDDEN_WIDTHS = 20
_INTERMEDIATE_WIDTHS = 6

# The rest is for the base, the logits of a chunk, and whatever else runs on the machine.
_SHARE_FOR_ACTIVATIONS = 0.6


def activation_bytes(model: PreTrainedModel, tokens: int) -> int:
    """About how many bytes the layers save for the backward of one micro-batch of so many tokens."""
    config = model.config.get_text_config()
    hidden = config.hidden_size
    # GPT-2 calls it n_inner, and leaves it out when it is four times the hidden width.
    intermediate = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    widths = _HIDDEN_WIDTHS * hidden + _INTERMEDIATE_WIDTHS * intermediate
    return config.num_hidden_layers * tokens * widths * model.dtype.itemsize


def available_bytes(device: torch.device) -> int:
    """Free memory where the model is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def wants_checkpointing(setting: bool | str, model: PreTrainedModel, tokens: int) -> bool:
    """Resolves `gradient_checkpointing`: `auto` recomputes only when the activations would not fit."""
    if isinstance(setting, bool):
        return setting
    return activation_bytes(model, tokens) > _SHARE_FOR_ACTIVATIONS * available_bytes(model.device)
