"""Log-probabilities of answers, one for each sequence: what the losses over answers are functions of.

log p(answer) = sum over its tokens t of log p(token t | tokens before it in its sequence)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.fusion import predicting_logits, predicting_states
from lamina.compute.ops.log_probs import (
    Measure,
    chunked_log_probs,
    chunked_log_probs_autograd,
    log_probs_of,
    measured,
    measured_log_probs,
    measured_log_probs_autograd,
)
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.structure.head import Head


@dataclass(frozen=True)
class Answers:
    """The answers of some sequences, in order.

    Attributes:
        log_probs: log p of each, (S,); float64, so that sums over long answers keep their digits.
        lengths: Tokens in each, (S,); float64.
    """

    log_probs: torch.Tensor
    lengths: torch.Tensor

    @property
    def averages(self) -> torch.Tensor:
        """Mean log p of a token of each answer, (S,)."""
        return self.log_probs / self.lengths


def answer_log_probs(model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> Answers:
    """Computes the log-probabilities of the answers in every document of some batches, in order.

    Args:
        model: The model, inside `fusion.fast_path` or with the attention that the batches' layout names.
        head: Decoder and output head of the model.
        batches: On the model's device.
    """
    each = [_of_batch(model, head, batch) for batch in batches]
    return Answers(torch.cat([one.log_probs for one in each]), torch.cat([one.lengths for one in each]))


def token_log_probs(model: PreTrainedModel, head: Head, batch: Batch) -> torch.Tensor:
    """Computes the log-probability of each supervised token of a batch: (N,), float32."""
    return log_probs_from(predictors(model, head, batch), model, head, batch)


def predictors(model: PreTrainedModel, head: Head, batch: Batch) -> torch.Tensor:
    """Computes what predicts the supervised tokens of a batch, and several functions of it may share.

    Returns:
        Hidden states for the head, (N, D); or logits (N, V) of a model whose head does not give them (`whole_model`).
    """
    return predicting_logits(model, batch) if head.whole_model else predicting_states(head.decoder, batch)


def log_probs_from(predictors: torch.Tensor, model: PreTrainedModel, head: Head, batch: Batch) -> torch.Tensor:
    """Computes the log-probability of each supervised token of a batch from its `predictors`: (N,), float32."""
    if head.whole_model:
        return log_probs_of(predictors, batch.targets)
    if has_plain_head(head):
        assert isinstance(head.linear, nn.Linear)
        return chunked_log_probs(predictors, batch.targets, head.linear, head.transform)
    vocabulary = model.config.get_text_config().vocab_size
    return chunked_log_probs_autograd(predictors, batch.targets, head.linear, head.transform, vocabulary)


def measured_token_log_probs(
    model: PreTrainedModel, head: Head, batch: Batch, measure: Measure
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the same and, without a gradient, what `measure` finds in the logits of each token: twice (N,)."""
    states = predictors(model, head, batch)
    if head.whole_model:
        return log_probs_of(states, batch.targets), measured(states, measure)
    if has_plain_head(head):
        assert isinstance(head.linear, nn.Linear)
        return measured_log_probs(states, batch.targets, head.linear, head.transform, measure)
    vocabulary = model.config.get_text_config().vocab_size
    return measured_log_probs_autograd(states, batch.targets, head.linear, head.transform, measure, vocabulary)


def has_plain_head(head: Head) -> bool:
    """Whether the head is a frozen linear layer. A subclass of nn.Linear may compute something else."""
    return type(head.linear) is nn.Linear and not head.linear.weight.requires_grad


def answers_of(logits: Sequence[torch.Tensor], example: EncodedExample) -> Answers:
    """Computes the same for one example from the model's own logits, in plain torch and in their dtype.

    Args:
        logits: Logits of each of its sequences, (T, vocabulary).
        example: The example.
    """
    each = [log_probs_of(*supervised_logits(one, example.sequence(number))) for number, one in enumerate(logits)]
    sums = [log_probs.sum() for log_probs in each]
    return Answers(torch.stack(sums), torch.tensor([float(len(log_probs)) for log_probs in each]).to(sums[0]))


def supervised_logits(logits: torch.Tensor, sequence: EncodedExample) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits (N, V) that predict a sequence's supervised tokens, of its (T, V); and these tokens, (N,)."""
    ids = torch.from_numpy(sequence.input_ids).long().to(logits.device)
    chosen = torch.from_numpy(sequence.supervised[1:]).to(logits.device)
    return logits[:-1][chosen], ids[1:][chosen]


def _of_batch(model: PreTrainedModel, head: Head, batch: Batch) -> Answers:
    each_N = token_log_probs(model, head, batch).double()
    document_T = np.repeat(np.arange(len(batch.document_lengths)), batch.document_lengths)
    document_N = torch.from_numpy(document_T).to(each_N.device)[batch.predicting]
    zeros = each_N.new_zeros(len(batch.document_lengths))
    return Answers(zeros.index_add(0, document_N, each_N), zeros.index_add(0, document_N, torch.ones_like(each_N)))
