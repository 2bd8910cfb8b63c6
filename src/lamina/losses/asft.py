"""Anchored supervised fine-tuning: DFT, and a penalty on how far the model moves from the base.

    L = sum over supervised tokens t of - sg(p_t) log p_t + alpha KL(b_t || s_t)

divided by the number of supervised tokens of the whole optimizer step. s_t is the model's distribution where token t is
predicted, p_t its probability of t, and b_t the distribution of the base with the adapter off.

Zhu et al. 2025, "Anchored Supervised Fine-Tuning", arXiv:2509.23753.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from lamina.compute.ops.divergence import divergence
from lamina.compute.ops.log_probs import log_probs_of
from lamina.config.losses.asft import AsftConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.losses.answers import log_probs_from, predictors, supervised_logits
from lamina.losses.base import Loss, LossSum, Metric
from lamina.losses.dft import metrics_of, weighed
from lamina.losses.teacher import Teacher
from lamina.methods.shared.base import Injection
from lamina.models.load import Base
from lamina.progress import Notify
from lamina.structure.head import Head, find_head

# KL(base || model), as `divergence` has it.
_BETA, _TEMPERATURE = 0.0, 1.0


class Asft(Loss):
    """Anchored supervised fine-tuning; the formula is at the top of the file."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._anchor: Teacher | None = None

    def attach(self, injection: Injection, base: Base, seed: int, notify: Notify) -> Injection:
        self._anchor = Teacher(base.model, find_head(base.model), injection)
        return injection

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        found = [self._of_batch(model, head, batch) for batch in batches]
        log_probs_N, away_N = (torch.cat(each).double() for each in zip(*found, strict=True))
        metrics = {**metrics_of(log_probs_N), "kl": Metric(away_N.detach().sum(), float(len(away_N)))}
        return LossSum((weighed(log_probs_N) + self.alpha * away_N).sum().float(), metrics)

    def standing(self, loss: float, metrics: Mapping[str, float]) -> float:
        return self.alpha * metrics["kl"] + 1.0 - metrics["probability"]

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        logits_NV, targets_N = supervised_logits(logits[0], example)
        theirs = self._bound.own_logits(example, logits_NV.device).to(logits_NV.dtype)
        base_NV, _ = supervised_logits(theirs, example)
        away_N = divergence(logits_NV.log_softmax(-1), base_NV.log_softmax(-1), _BETA)
        return (weighed(log_probs_of(logits_NV, targets_N)) + self.alpha * away_N).sum()

    @property
    def _bound(self) -> Teacher:
        assert self._anchor is not None, "`attach` comes first"
        return self._anchor

    def _of_batch(self, model: PreTrainedModel, head: Head, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log p and divergence of each supervised token, twice (N,)."""
        base = self._bound.predictors(batch.examples, batch.layout, model.device)
        states = predictors(model, head, batch)
        away_N = self._bound.divergences(states, base, model, head, _BETA, _TEMPERATURE)
        return log_probs_from(states, model, head, batch), away_N


def build(config: AsftConfig) -> Asft:
    """Builds the loss of a `loss:` section."""
    return Asft(config.asft_alpha)
