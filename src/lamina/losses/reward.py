"""Reward model: L = -log sigmoid(s(chosen) - s(rejected) - m) + c (s(chosen) + s(rejected))^2.

The score s of a conversation is w^T h: h is the hidden state of the answer's last token, the one that ends the turn,
and w is a head that is trained and saved with the adapter (`score`, as in transformers' models for sequence
classification). m is the row's `margin`, and c is `center_rewards_coefficient`. The loss is a mean over the pairs of
the whole optimizer step. With the adapter off there is no head, and every score is 0.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", arXiv:2203.02155; margins:
Touvron et al. 2023, "Llama 2", arXiv:2307.09288; centering: Eisenstein et al. 2023, arXiv:2312.09244.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from lamina.compute.fusion import model_inputs, token_rows
from lamina.config.losses.reward import RewardConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.data.side import Side
from lamina.errors import ConfigError, Problem
from lamina.losses.base import Loss, LossSum, Metric
from lamina.losses.pairs import PAIRS, note_length_bias
from lamina.methods.shared.base import Injection
from lamina.methods.shared.score import attach_score, scored, text_states
from lamina.models.load import Base
from lamina.progress import Notify
from lamina.structure.head import Head, find_head


class Reward(Loss):
    """A reward model; the formula is at the top of the file."""

    sequences = PAIRS
    trains_score = True

    def __init__(self, center: float | None) -> None:
        self.center = center or 0.0

    def attach(self, injection: Injection, base: Base, seed: int, notify: Notify) -> Injection:
        if find_head(injection.model).whole_model:
            message = (
                f"a score needs hidden states, and those of {type(injection.model).__name__} are in no known place."
            )
            raise ConfigError(Problem("loss.type", message, "use another loss, or another model"))
        return attach_score(injection, seed)

    def count(self, examples: Sequence[EncodedExample]) -> float:
        return float(len(examples))

    def study(self, train: Side, rows_per_step: float, notify: Notify) -> None:
        note_length_bias(train, notify)

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        examples = batches[0].examples
        scores = torch.cat([_scores(model, head, batch) for batch in batches]).double()
        losses = self.losses(scores, examples)
        return LossSum(losses.sum().float(), self._metrics(scores.detach()))

    def outputs(self, model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
        return scored(model, text_states(model, ids))

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        scores = [one[np.flatnonzero(example.sequence(number).supervised)[-1], 0] for number, one in enumerate(logits)]
        return self.losses(torch.stack(scores), [example]).sum()

    def losses(self, scores: torch.Tensor, examples: Sequence[EncodedExample]) -> torch.Tensor:
        """Computes the loss of each pair, (P,), from the scores of its answers, (2 P,), chosen and rejected in turn."""
        chosen, rejected = scores.view(-1, 2).unbind(1)
        margins = torch.tensor([example.values["margin"] for example in examples]).to(scores)
        return -F.logsigmoid(chosen - rejected - margins) + self.center * (chosen + rejected) ** 2

    def _metrics(self, scores: torch.Tensor) -> dict[str, Metric]:
        """TRL's `accuracy`, `margin` and `mean_reward`, under the names that the other losses over pairs have."""
        chosen, rejected = scores.view(-1, 2).unbind(1)
        figures: Mapping[str, torch.Tensor] = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).double(),
            "mean_reward": (chosen + rejected) / 2,
        }
        return {name: Metric(each.sum(), float(len(each))) for name, each in figures.items()}


def build(config: RewardConfig) -> Reward:
    """Builds the loss of a `loss:` section."""
    return Reward(config.center_rewards_coefficient)


def _scores(model: PreTrainedModel, head: Head, batch: Batch) -> torch.Tensor:
    """Scores of a batch's documents, (documents,), float32."""
    hidden_TD = token_rows(batch, head.decoder(**model_inputs(batch)).last_hidden_state)
    ends = np.cumsum(batch.document_lengths)
    supervised_at = batch.predicting + 1
    last = torch.searchsorted(supervised_at, torch.from_numpy(ends).to(supervised_at.device)) - 1
    return scored(model, hidden_TD.index_select(0, supervised_at[last]))[:, 0]
