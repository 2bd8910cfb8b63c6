"""Cross entropy over the supervised tokens of a packed batch: the loss of supervised fine-tuning."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lamina.data.batch import Batch
from lamina.fusion import model_inputs
from lamina.models.head import Head
from lamina.ops.cross_entropy import chunked_cross_entropy, chunked_cross_entropy_autograd


def cross_entropy(model: PreTrainedModel, head: Head, batch: Batch) -> torch.Tensor:
    """Sum of -log p over the batch's supervised tokens.

    Args:
        model: Inside `fusion.fast_path`, or in the attention that the batch's layout names.
        head: The model's parts.
        batch: Documents in a layout that gives the model's own numbers, on the model's device.

    Returns:
        A float32 scalar: a sum, to be divided by the supervised tokens of the whole optimizer step.
    """
    inputs = model_inputs(batch)
    if head.whole_model:
        logits_TV = model(**inputs, logits_to_keep=batch.predicting).logits[0]
        if logits_TV.shape[0] != batch.supervised_tokens:  # the model passed over what to keep
            logits_TV = logits_TV.index_select(0, batch.predicting)
        return F.cross_entropy(logits_TV.float(), batch.targets, reduction="sum")
    hidden_TD = head.decoder(**inputs).last_hidden_state[0]
    hidden_ND = hidden_TD.index_select(0, batch.predicting)
    # A subclass may compute something else than its weight says.
    if type(head.linear) is nn.Linear and not head.linear.weight.requires_grad:
        return chunked_cross_entropy(hidden_ND, batch.targets, head.linear, head.transform)
    vocabulary = model.config.get_text_config().vocab_size
    return chunked_cross_entropy_autograd(hidden_ND, batch.targets, head.linear, head.transform, vocabulary)
