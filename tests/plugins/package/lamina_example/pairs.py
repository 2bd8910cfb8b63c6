"""Logistic loss over pairs: L = -log sigmoid(beta (log p(chosen) - log p(rejected)) - margin), a mean over pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from lamina.compute.fusion import model_inputs
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.sequences import Sequences
from lamina.losses.base import Loss, LossSum, Metric
from lamina.structure.head import Head
from lamina_example.pairs_config import PairsConfig


def both_answers(example: Example) -> list[Example]:
    """Returns the prompt with the chosen answer, and with the rejected one."""
    return [
        replace(example, messages=messages, rejected=(), kind=Kind.CONVERSATION) for messages in example.alternatives
    ]


def margin_of(example: Example) -> Mapping[str, float]:
    """Returns how much better the chosen answer should be."""
    return {"margin": example.margin or 0.0}


class Pairs(Loss):
    """Computes the loss; see the top of the file."""

    sequences = Sequences(frozenset({Kind.PREFERENCE}), both_answers, margin_of, {"pairs": 1}, "pairs of answers")

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def count(self, examples: Sequence[EncodedExample]) -> float:
        return float(len(examples))

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        sums = torch.cat([_log_probabilities(model, batch) for batch in batches])
        losses, better = self._losses(*sums.view(-1, 2).unbind(1), batches[0].examples)
        return LossSum(losses.sum(), {"rewards/accuracies": Metric(better.float().sum(), float(len(better)))})

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        cuts = (len(logits[0]),)
        ids = torch.from_numpy(example.input_ids).long().to(logits[0].device).tensor_split(cuts)
        learned = torch.from_numpy(example.supervised).to(logits[0].device).tensor_split(cuts)
        sums = [
            one.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0][mask[1:]].sum()
            for one, tokens, mask in zip(logits, ids, learned, strict=True)
        ]
        return self._losses(sums[0][None], sums[1][None], [example])[0].sum()

    def _losses(
        self, chosen: torch.Tensor, rejected: torch.Tensor, examples: Sequence[EncodedExample]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        margins = torch.tensor([example.values["margin"] for example in examples]).to(chosen)
        return -F.logsigmoid(self.beta * (chosen - rejected) - margins), chosen > rejected


def _log_probabilities(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Returns the log-probability of the supervised tokens of each document, (documents,)."""
    logits_NV = model(**model_inputs(batch)).logits[0].index_select(0, batch.predicting).float()
    each_N = -F.cross_entropy(logits_NV, batch.targets, reduction="none")
    lengths = torch.tensor(batch.document_lengths, device=each_N.device)
    document_T = torch.arange(len(lengths), device=each_N.device).repeat_interleave(lengths)
    return each_N.new_zeros(len(lengths)).index_add(0, document_T[batch.predicting], each_N)


def build(config: PairsConfig) -> Pairs:
    """Builds the loss of a `loss:` section."""
    return Pairs(config.beta)
