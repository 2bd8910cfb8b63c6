"""Cross entropy over the supervised tokens of a packed batch: the loss of supervised fine-tuning."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.data.batch import Batch
from lamina.models.head import Head
from lamina.ops.cross_entropy import chunked_cross_entropy, chunked_cross_entropy_autograd


def cross_entropy(model: PreTrainedModel, head: Head, batch: Batch) -> torch.Tensor:
    """Sum of -log p over the batch's supervised tokens.

    Args:
        model: In packed attention (see `ops.attention.packed_attention`).
        head: The model's parts.
        batch: Documents laid end to end, on the model's device.

    Returns:
        A float32 scalar: a sum, to be divided by the supervised tokens of the whole optimizer step.
    """
    inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "document_lengths": batch.document_lengths,
        "use_cache": False,
    }
    if head.whole_model:
        logits = model(**inputs, logits_to_keep=batch.predicting).logits
        return nn.functional.cross_entropy(logits[0].float(), batch.targets, reduction="sum")
    hidden_TD = head.decoder(**inputs).last_hidden_state[0]
    hidden_ND = hidden_TD.index_select(0, batch.predicting)
    if isinstance(head.linear, nn.Linear) and not head.linear.weight.requires_grad:
        return chunked_cross_entropy(hidden_ND, batch.targets, head.linear, head.transform)
    vocabulary = model.config.get_text_config().vocab_size
    return chunked_cross_entropy_autograd(hidden_ND, batch.targets, head.linear, head.transform, vocabulary)
