"""Cross entropy over the supervised tokens: the loss of supervised fine-tuning.

    L = - sum over supervised tokens t of log p(token t | tokens before it in its document)

divided by the number of supervised tokens of the whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from lamina.config.losses.cross_entropy import CrossEntropyConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.losses.answers import token_log_probs
from lamina.losses.base import Loss, LossSum
from lamina.structure.head import Head


class CrossEntropy(Loss):
    """Cross entropy over the supervised tokens; the formula is at the top of the file."""

    is_likelihood = True
    is_per_token = True

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
    return -token_log_probs(model, head, batch).sum()
