"""Cross entropy over the supervised tokens of a packed batch: the loss of supervised fine-tuning."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lamina.data.batch import Batch
from lamina.models.head import Head
from lamina.ops.cross_entropy import chunked_cross_entropy, chunked_cross_entropy_autograd
from lamina.ops.shapes import repeating_size


def cross_entropy(model: PreTrainedModel, head: Head, batch: Batch) -> torch.Tensor:
    """Sum of -log p over the batch's supervised tokens.

    Args:
        model: In packed attention (see `ops.attention.packed_attention`).
        head: The model's parts.
        batch: Documents laid end to end, on the model's device.

    Returns:
        A float32 scalar: a sum, to be divided by the supervised tokens of the whole optimizer step.
    """
    inputs = _inputs(batch)
    if head.whole_model:
        return F.cross_entropy(_whole_logits(model, inputs, batch).float(), batch.targets, reduction="sum")
    hidden_TD = head.decoder(**inputs).last_hidden_state[0]
    hidden_ND = hidden_TD.index_select(0, batch.predicting)
    # A subclass may compute something else than its weight says.
    if type(head.linear) is nn.Linear and not head.linear.weight.requires_grad:
        return chunked_cross_entropy(hidden_ND, batch.targets, head.linear, head.transform)
    vocabulary = model.config.get_text_config().vocab_size
    return chunked_cross_entropy_autograd(hidden_ND, batch.targets, head.linear, head.transform, vocabulary)


def _whole_logits(model: PreTrainedModel, inputs: dict[str, Any], batch: Batch) -> torch.Tensor:
    """(N, vocabulary): the model's own logits where a supervised token follows, which not every model gives alone."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**inputs, logits_to_keep=batch.predicting).logits[0]
    return model(**inputs).logits[0].index_select(0, batch.predicting)


def _inputs(batch: Batch) -> dict[str, Any]:
    """The batch; on the CPU with a last document that nobody asks for, which brings its length to one that repeats."""
    filler = repeating_size(batch.tokens) - batch.tokens if batch.input_ids.device.type == "cpu" else 0
    positions = torch.arange(filler, device=batch.input_ids.device)[None]
    return {
        "input_ids": F.pad(batch.input_ids, (0, filler)),
        "position_ids": torch.cat([batch.position_ids, positions], dim=1),
        "document_lengths": [*batch.document_lengths, filler] if filler else batch.document_lengths,
        "use_cache": False,
    }
