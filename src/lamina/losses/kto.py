"""KTO: L = w_d (1 - sigmoid(beta (r - z))) for a desirable answer, w_u (1 - sigmoid(beta (z - r))) for another one.

    r = log p(answer) - log p_ref(answer)        z = max(0, mean of the same over mismatched answers)

The loss is a mean over the answers of the whole optimizer step. z estimates the KL divergence between policy and
reference, from the prompts of the step with the answers of other rows, and has no gradient. Which row's answer a prompt
gets is drawn once for the run, so the reference's log-probabilities of mismatched answers are also computed once. With
`loss_type: apo_zero_unpaired`, z is 0 (D'Oosterlinck et al. 2024, arXiv:2408.06266).

The weights balance the labels: n_d w_d / (n_u w_u) is to be between 1 and 4 / 3, where n_d and n_u count the rows. With
`auto` for both, the weight of the label that has too few rows is raised as far as that takes; with a number for one of
them, the other is raised or lowered.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv:2402.01306.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lamina.config.losses.kto import KtoConfig
from lamina.data.batch import Batch, Layout, build_units
from lamina.data.example import EncodedExample, Example, Kind
from lamina.data.mismatch import draw_partners, mismatched
from lamina.data.sequences import Sequences
from lamina.data.side import Side
from lamina.distributed.world import World
from lamina.errors import DataError
from lamina.losses.answers import Answers, answer_log_probs, answers_of
from lamina.losses.base import Loss, LossSum, Metric
from lamina.losses.pairs import REFERENCE, both_answers, unfit_pair
from lamina.progress import Notify
from lamina.structure.head import Head

_LABEL = "label"
_KL = "step/kl"
_KL_UNCLAMPED = "step/kl_unclamped"
_LONGEST = "longest_of_set"

# The largest ratio of weighted desirable to weighted undesirable answers that the paper recommends; the smallest is 1.
_MOST_DESIRABLE = 4 / 3

# Share of steps with one label only that is worth a note.
_ONE_SIDED = 0.05


def labeled_answers(example: Example) -> list[Example]:
    """Returns the labeled answer, or both answers of a pair."""
    return both_answers(example) if example.kind is Kind.PREFERENCE else [example]


def label_value(example: Example) -> Mapping[str, float]:
    """Returns the label, 1 or 0; NaN for a pair, whose answers have one each."""
    return {_LABEL: math.nan if example.label is None else float(example.label)}


SEQUENCES = Sequences(
    frozenset({Kind.UNPAIRED_PREFERENCE, Kind.PREFERENCE}),
    labeled_answers,
    label_value,
    label=_LABEL,
    key={"labels": 1},
    learns="answers with a label, and pairs",
    whole_rows=True,
    unfit=unfit_pair,
)


class Kto(Loss):
    """Kahneman-Tversky optimization; the formula is at the top of the file."""

    sequences = SEQUENCES
    needs_reference = True

    def __init__(self, config: KtoConfig) -> None:
        self.config = config
        self.desirable_weight = 1.0 if config.desirable_weight == "auto" else config.desirable_weight
        self.undesirable_weight = 1.0 if config.undesirable_weight == "auto" else config.undesirable_weight

    @property
    def estimates_kl(self) -> bool:
        """Whether rewards are measured against an estimate of the KL divergence."""
        return self.config.loss_type == "kto"

    def count(self, examples: Sequence[EncodedExample]) -> float:
        return float(sum(len(example.lengths) for example in examples))

    def study(self, train: Side, rows_per_step: float, notify: Notify) -> None:
        labels = [label for example in train for label in labels_of(example)]
        desirable, undesirable = labels.count(True), labels.count(False)
        if not desirable or not undesirable:
            there = "desirable" if desirable else "undesirable"
            raise DataError(
                f"all {len(labels)} training answers are labeled {there}, and KTO learns from the difference between "
                f"the labels. Fix: add answers with the label {str(not desirable).lower()}; to learn good answers "
                "alone, remove the label column and use cross_entropy."
            )
        self._balance(desirable, undesirable)
        one_sided = _one_sided(train, rows_per_step)
        if one_sided > _ONE_SIDED:
            notify(
                f"With {rows_per_step:.1f} rows in a step, {one_sided:.0%} of all steps have answers of one label "
                "only, which moves all answers in one direction. A larger train.gradient_accumulation_steps helps."
            )
        if contradictions := _contradictions(train):
            notify(f"{contradictions} training answers have both labels for the same prompt, so they cancel out.")

    def arrange(self, side: Side, sets: Sequence[slice], seed: int) -> Side:
        if not self.estimates_kl or not len(side):
            return side
        prompts, partners, longest = side.prompts, np.arange(len(side)), np.zeros(len(side))
        for chosen in sets or [slice(0, len(side))]:  # what a set gives does not depend on other sets
            partners[chosen] = chosen.start + draw_partners(prompts[chosen], seed)
            longest[chosen] = side[chosen].longest
        return side.with_values({_LONGEST: longest}).with_companions(partners, _companion)

    def over_step(
        self,
        model: PreTrainedModel,
        head: Head,
        micro_batches: Sequence[Sequence[EncodedExample]],
        layout: Layout,
        world: World,
        ran: Callable[[int], object] = lambda examples: None,
    ) -> Sequence[Sequence[EncodedExample]]:
        if not self.estimates_kl:
            return micro_batches
        parts: dict[int, tuple[float, int]] = {}
        for place, counts in world.walk([float(sum(map(len, examples))) for examples in micro_batches]):
            ratios = _mismatched_ratios(model, head, micro_batches[place], layout)
            if counts:
                parts[place] = float(ratios.sum()), len(ratios)
                ran(len(micro_batches[place]))
        found = world.collect(parts, "the rewards of mismatched answers")
        kl = sum(total for total, _ in found) / max(sum(count for _, count in found), 1)
        values = {_KL: max(kl, 0.0), _KL_UNCLAMPED: kl}
        return [[example.with_values(values) for example in examples] for examples in micro_batches]

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        answers, examples = answer_log_probs(model, head, batches), batches[0].examples
        losses, rewards = self.losses(answers, examples)
        return LossSum(losses.sum().float(), self._metrics(answers.log_probs, rewards, examples))

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        return self.losses(answers_of(logits, example), [example])[0].sum()

    def losses(self, answers: Answers, examples: Sequence[EncodedExample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the loss and the reward of each answer, (S,) each."""
        reference = [example.values[REFERENCE.format(n)] for example in examples for n in range(len(example.lengths))]
        theirs = torch.tensor(reference, dtype=torch.float64).to(answers.log_probs)
        rewards = self.config.beta * (answers.log_probs - theirs)
        kl = self.config.beta * (examples[0].values[_KL] if self.estimates_kl else 0.0)
        desirable = _labels(examples, rewards.device)
        losses = torch.where(
            desirable,
            self.desirable_weight * (1 - torch.sigmoid(rewards - kl)),
            self.undesirable_weight * (1 - torch.sigmoid(kl - rewards)),
        )
        return losses, rewards

    def figures(self) -> dict[str, Any]:
        return {"desirable_weight": self.desirable_weight, "undesirable_weight": self.undesirable_weight}

    def recall(self, figures: Mapping[str, Any]) -> None:
        self.desirable_weight = figures.get("desirable_weight", self.desirable_weight)
        self.undesirable_weight = figures.get("undesirable_weight", self.undesirable_weight)

    def _metrics(
        self, log_probs: torch.Tensor, rewards: torch.Tensor, examples: Sequence[EncodedExample]
    ) -> dict[str, Metric]:
        log_probs, rewards = log_probs.detach(), rewards.detach()
        desirable = _labels(examples, rewards.device)
        metrics = {}
        for name, which in (("chosen", desirable), ("rejected", ~desirable)):
            count = float(which.sum())
            metrics[f"rewards/{name}"] = Metric(rewards[which].sum(), count)
            metrics[f"logps/{name}"] = Metric(log_probs[which].sum(), count)
        if self.estimates_kl:
            for name, key in (("kl", _KL), ("kl/unclamped", _KL_UNCLAMPED)):
                metrics[name] = Metric(rewards.new_tensor(examples[0].values[key] * len(rewards)), float(len(rewards)))
        first = torch.tensor([n == 0 for example in examples for n in range(len(example.lengths))])
        paired = torch.tensor([len(example.lengths) == 2 for example in examples for _ in example.lengths])
        if paired.any():
            better = rewards[(first & paired).to(rewards.device)] > rewards[(~first & paired).to(rewards.device)]
            metrics["rewards/accuracies"] = Metric(better.double().sum(), float(len(better)))
        return metrics

    def _balance(self, desirable: int, undesirable: int) -> None:
        """Sets the weights that are `auto`."""
        ratio = desirable * self.desirable_weight / (undesirable * self.undesirable_weight)
        wanted = min(max(ratio, 1.0), _MOST_DESIRABLE)
        if self.config.desirable_weight == "auto" and (ratio < 1.0 or self.config.undesirable_weight != "auto"):
            self.desirable_weight *= wanted / ratio
        elif self.config.undesirable_weight == "auto":
            self.undesirable_weight *= ratio / wanted


def build(config: KtoConfig) -> Kto:
    """Builds the loss of a `loss:` section."""
    return Kto(config)


def _companion(prompt_of: EncodedExample, answer_of: EncodedExample) -> EncodedExample:
    """Builds mismatched answers that are no longer than what goes through the model anyway."""
    return mismatched(prompt_of, answer_of, int(prompt_of.values[_LONGEST]))


def labels_of(example: EncodedExample) -> list[bool]:
    """Returns whether each answer of an example is desirable; the first one of a pair is."""
    if len(example.lengths) == 1:
        return [bool(example.values[_LABEL])]
    return [number == 0 for number in range(len(example.lengths))]


def _labels(examples: Sequence[EncodedExample], device: torch.device) -> torch.Tensor:
    return torch.tensor([label for example in examples for label in labels_of(example)], device=device)


@torch.no_grad()
def _mismatched_ratios(
    model: PreTrainedModel, head: Head, examples: Sequence[EncodedExample], layout: Layout
) -> torch.Tensor:
    """log p - log p_ref of each mismatched answer of a micro-batch, without dropout."""
    companions = [example.companion for example in examples if example.companion is not None]
    training = model.training
    model.eval()
    try:
        found = [
            answer_log_probs(model, head, [batch.to(model.device) for batch in unit]).log_probs
            for unit in build_units(companions, layout)
        ]
    finally:
        model.train(training)
    reference = [
        example.values[REFERENCE.format(f"companion/{number}")]
        for example in examples
        if example.companion is not None
        for number in range(len(example.companion.lengths))
    ]
    log_probs = torch.cat(found)
    return log_probs - torch.tensor(reference, dtype=torch.float64).to(log_probs)


def _one_sided(train: Side, rows_per_step: float) -> float:
    """Computes the share of steps whose answers all have the same label; a pair has both."""
    sides = [set(labels_of(example)) for example in train]
    drawn = min(max(1, round(rows_per_step)), len(sides))
    share = 0.0
    for label in (True, False):
        alike = sides.count({label})
        # All rows of a step are of this label, drawn without replacement.
        share += math.prod((alike - number) / (len(sides) - number) for number in range(drawn)) if drawn <= alike else 0
    return share


def _contradictions(train: Side) -> int:
    """Counts sequences that have both labels."""
    seen: dict[bytes, set[bool]] = {}
    for example in train:
        for number, label in enumerate(labels_of(example)):
            digest = hashlib.blake2b(example.sequence(number).input_ids.tobytes(), digest_size=16).digest()
            seen.setdefault(digest, set()).add(label)
    return sum(len(labels) == 2 for labels in seen.values())
