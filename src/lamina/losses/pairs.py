"""Losses over pairs of answers: how a preference becomes two sequences, and `PairLoss`, the base of those losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from lamina.data.batch import Batch, Layout
from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.sequences import Sequences
from lamina.data.side import Side
from lamina.distributed.world import World
from lamina.losses.answers import Answers, answer_log_probs, answers_of
from lamina.losses.base import Loss, LossSum, Metric
from lamina.progress import Notify
from lamina.structure.head import Head

REFERENCE = "reference/{}"
"""Name of the value with the reference's log-probability of the answer in a sequence."""

# Pairs of a step for each of its chosen tokens.
_PAIRS_PER_TOKEN = "step/pairs_per_chosen_token"

# A share of pairs in which one side is longer that is worth a note: a loss can tell the sides apart by length alone.
_LOPSIDED = 0.65

# Chosen answers that lost so much of their log-probability, relative to the start, are worth a note.
_FALLEN = 0.05


def both_answers(example: Example) -> list[Example]:
    """Returns the prompt with the chosen answer, and with the rejected one."""
    return [
        replace(example, messages=messages, rejected=(), kind=Kind.CONVERSATION) for messages in example.alternatives
    ]


def unfit_pair(encoded: EncodedExample) -> str:
    """Returns why a row cannot be compared: answers that are equal or empty as tokens, or after different prompts."""
    parts = [encoded.sequence(number) for number in range(len(encoded.lengths))]
    if not all(part.supervised.any() for part in parts):
        return "no_supervised_tokens"
    starts = [int(np.flatnonzero(part.supervised)[0]) for part in parts]
    prompts = [part.input_ids[:start] for part, start in zip(parts, starts, strict=True)]
    if any(not np.array_equal(prompt, prompts[0]) for prompt in prompts[1:]):
        return "prompt_not_shared"
    answers = [part.input_ids[start:] for part, start in zip(parts, starts, strict=True)]
    return "same_answers" if len(parts) > 1 and np.array_equal(answers[0], answers[1]) else ""


def margin_of(example: Example) -> Mapping[str, float]:
    """Returns by how much the chosen answer is better; 0 where the data does not say."""
    return {"margin": example.margin or 0.0}


PAIRS = Sequences(
    frozenset({Kind.PREFERENCE}),
    both_answers,
    margin_of,
    key={"pairs": 1},
    learns="pairs of a chosen and a rejected answer",
    whole_rows=True,
    unfit=unfit_pair,
)
"""Preferences, two sequences each: the prompt with the chosen answer, and with the rejected one."""


@dataclass(frozen=True)
class Pairs:
    """The answers of some pairs.

    Attributes:
        chosen: log p of each chosen answer, (P,).
        rejected: log p of each rejected answer, (P,).
        chosen_lengths: Tokens in each chosen answer, (P,).
        rejected_lengths: Tokens in each rejected answer, (P,).
        examples: The pairs.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor
    examples: Sequence[EncodedExample]

    @classmethod
    def of(cls, answers: Answers, examples: Sequence[EncodedExample]) -> Pairs:
        """Sorts the answers of examples with two sequences each."""
        chosen, rejected = answers.log_probs.view(-1, 2).unbind(1)
        chosen_lengths, rejected_lengths = answers.lengths.view(-1, 2).unbind(1)
        return cls(chosen, rejected, chosen_lengths, rejected_lengths, examples)

    def values(self, name: str) -> torch.Tensor:
        """Returns a value of each pair, (P,)."""
        numbers = [example.values[name] for example in self.examples]
        return torch.tensor(numbers, dtype=torch.float64).to(self.chosen)

    @property
    def average_chosen(self) -> torch.Tensor:
        """Mean log p of a token of each chosen answer, (P,)."""
        return self.chosen / self.chosen_lengths

    @property
    def average_rejected(self) -> torch.Tensor:
        """Mean log p of a token of each rejected answer, (P,)."""
        return self.rejected / self.rejected_lengths


@dataclass(frozen=True)
class PairLosses:
    """What a loss makes of some pairs.

    Attributes:
        losses: Of each pair, (P,).
        chosen_rewards: Implicit reward of each chosen answer, (P,).
        rejected_rewards: Implicit reward of each rejected answer, (P,).
        more: Other figures by name, (P,) each.
    """

    losses: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor
    more: Mapping[str, torch.Tensor]


class PairLoss(Loss):
    """A loss that is a mean over pairs of a function of both answers' log-probabilities."""

    sequences = PAIRS

    @abstractmethod
    def losses(self, pairs: Pairs) -> PairLosses:
        """Computes the loss of each pair, in plain torch and in the dtype of the log-probabilities."""

    def count(self, examples: Sequence[EncodedExample]) -> float:
        return float(len(examples))

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        pairs = Pairs.of(answer_log_probs(model, head, batches), batches[0].examples)
        found = self.losses(pairs)
        return LossSum(found.losses.sum().float(), pair_metrics(pairs, found))

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        return self.losses(Pairs.of(answers_of(logits, example), [example])).losses.sum()

    def study(self, train: Side, rows_per_step: float, notify: Notify) -> None:
        note_length_bias(train, notify)

    def remarks(self, first: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
        chosen, before = now["logps/chosen"], first["logps/chosen"]
        both = chosen < before and now["logps/rejected"] < first["logps/rejected"]
        if not both or chosen > before - _FALLEN * abs(before) or now["rewards/margins"] <= first["rewards/margins"]:
            return []
        return [
            f"Chosen and rejected answers both lose probability (chosen: log p {before:.1f} -> {chosen:.1f}) while the "
            f"margin grows: the model moves away from both. {self.cure}"
        ]

    @property
    def cure(self) -> str:
        """What to do where chosen answers lose probability."""
        return "A lower train.learning_rate keeps closer to the start."


class ChosenLikelihood(PairLoss):
    """A loss over pairs that may also have the likelihood of the chosen tokens of the whole step, as in fine-tuning.

    TRL takes a mean over the tokens of each micro-batch, and of these means; here, a token counts the same everywhere.
    """

    @property
    @abstractmethod
    def likelihood_weight(self) -> float:
        """Weight of the likelihood; 0 for none."""

    def negative_likelihood(self, pairs: Pairs) -> torch.Tensor:
        """Returns -log p of each chosen answer, (P,), in units whose mean over the step's pairs is one over tokens."""
        return -pairs.chosen * pairs.values(_PAIRS_PER_TOKEN)

    def over_step(
        self,
        model: PreTrainedModel,
        head: Head,
        micro_batches: Sequence[Sequence[EncodedExample]],
        layout: Layout,
        world: World,
        ran: Callable[[int], object] = lambda examples: None,
    ) -> Sequence[Sequence[EncodedExample]]:
        if not self.likelihood_weight:
            return micro_batches
        pairs = [example for examples in micro_batches for example in examples]
        tokens = sum(example.sequence(0).supervised_tokens for example in pairs)
        values = {_PAIRS_PER_TOKEN: len(pairs) / max(tokens, 1)}
        return [[example.with_values(values) for example in examples] for examples in micro_batches]


def pair_metrics(pairs: Pairs, found: PairLosses) -> dict[str, Metric]:
    """Returns the metrics of some pairs under TRL's names."""
    count = float(len(pairs.chosen))
    chosen, rejected = found.chosen_rewards.detach(), found.rejected_rewards.detach()
    figures = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).double(),
        "logps/chosen": pairs.chosen,
        "logps/rejected": pairs.rejected,
        **found.more,
    }
    return {name: Metric(each.detach().double().sum(), count) for name, each in figures.items()}


def note_length_bias(train: Side, notify: Notify) -> None:
    """Notes where the answers of one side are mostly the longer ones."""
    longer = _longer_rejected(train)
    side, share = ("rejected", longer) if longer > 0.5 else ("chosen", 1 - longer)
    if share >= _LOPSIDED:
        notify(
            f"Length bias: the {side} answer is the longer one in {share:.0%} of {len(train)} pairs, so length alone "
            "tells them apart. Compare answers' lengths before and after training, or balance the pairs."
        )


def _longer_rejected(train: Side) -> float:
    """The share of pairs whose rejected answer has more tokens; ties count half."""
    longer = 0.0
    for example in train:
        chosen, rejected = (example.sequence(number).supervised_tokens for number in range(2))
        longer += 0.5 if chosen == rejected else float(rejected > chosen)
    return longer / max(len(train), 1)
