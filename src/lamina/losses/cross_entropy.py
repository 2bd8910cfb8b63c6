"""Cross entropy over the supervised tokens: the loss of supervised fine-tuning.

    L = - sum over supervised tokens t of log p(token t | tokens before it in its document)

divided by the number of supervised tokens of the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion import model_inputs, predicting_logits, token_rows
from lamina.compute.ops.cross_entropy import chunked_cross_entropy, chunked_cross_entropy_autograd
from lamina.config.losses.cross_entropy import CrossEntropyConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.losses.base import Loss, LossSum
from lamina.structure.head import Head


class CrossEntropy(Loss):
    """Cross entropy over the supervised tokens; the formula is at the top of the file."""

    is_likelihood = True

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        return LossSum(torch.stack([cross_entropy(model, head, batch) for batch in batches]).sum())

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        (logits_TV,) = logits
        ids = torch.from_numpy(example.input_ids).long().to(logits_TV.device)
        labels = ids.masked_fill(~torch.from_numpy(example.supervised).to(ids.device), -100)
        return F.cross_entropy(logits_TV[:-1], labels[1:], reduction="sum")


def build(config: CrossEntropyConfig) -> CrossEntropy:
    """Builds the loss of a `loss:` section."""
    return CrossEntropy()


def cross_entropy(model: PreTrainedModel, head: Head, batch: Batch) -> torch.Tensor:
    """Computes the sum of -log p over the batch's supervised tokens.

    Args:
        model: The model, inside `fusion.fast_path` or with the attention that the batch's layout names.
        head: Decoder and output head of the model.
        batch: Documents in a layout that keeps the model's own outputs, on the model's device.

    Returns:
        A float32 scalar: a sum, to be divided by the supervised tokens of the whole optimizer step.
    """
    if head.whole_model:
        return F.cross_entropy(predicting_logits(model, batch).float(), batch.targets, reduction="sum")
    hidden_TD = token_rows(batch, head.decoder(**model_inputs(batch)).last_hidden_state)
    if not len(batch.predicting):  # a part of documents without a target, which others need the gradients of
        return 0.0 * hidden_TD.float().sum()
    hidden_ND = hidden_TD.index_select(0, batch.predicting)
    # Not for a subclass of nn.Linear, which may compute something else.
    if type(head.linear) is nn.Linear and not head.linear.weight.requires_grad:
        return chunked_cross_entropy(hidden_ND, batch.targets, head.linear, head.transform)
    vocabulary = model.config.get_text_config().vocab_size
    return chunked_cross_entropy_autograd(hidden_ND, batch.targets, head.linear, head.transform, vocabulary)
