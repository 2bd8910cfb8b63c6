"""Entropy-adaptive fine-tuning: cross entropy in which each supervised token weighs as much as the model is uncertain.

    L = - sum over supervised tokens t of sg(h_t)^alpha log p_t        h_t = H(q_t) / log k

divided by the number of supervised tokens of the whole optimizer step. q_t is the model's distribution over the k most
probable tokens, which add up to 1, and H its entropy, so that h_t is between 0 and 1. sg has no gradient.

Diao et al. 2026, "Entropy-Adaptive Fine-Tuning: Resolving Confident Conflicts to Mitigate Forgetting",
arXiv:2601.02151.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from lamina.compute.ops.log_probs import log_probs_of, measured
from lamina.config.losses.eaft import EaftConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.losses.answers import measured_token_log_probs, supervised_logits
from lamina.losses.base import Loss, LossSum, Metric
from lamina.losses.dft import metrics_of
from lamina.structure.head import Head


class Eaft(Loss):
    """Entropy-adaptive fine-tuning; the formula is at the top of the file."""

    is_per_token = True

    def __init__(self, alpha: float, k: int) -> None:
        self.alpha, self.k = alpha, k

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        pairs = [measured_token_log_probs(model, head, batch, self.entropy) for batch in batches]
        log_probs_N, entropy_N = (torch.cat(each).double() for each in zip(*pairs, strict=True))
        metrics = {**metrics_of(log_probs_N), "entropy": Metric(entropy_N.sum(), float(len(entropy_N)))}
        return LossSum(-(entropy_N**self.alpha * log_probs_N).sum().float(), metrics)

    def standing(self, loss: float, metrics: Mapping[str, float]) -> float:
        return metrics["nll_loss"]

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        logits_NV, targets_N = supervised_logits(logits[0], example)
        return -(measured(logits_NV, self.entropy) ** self.alpha * log_probs_of(logits_NV, targets_N)).sum()

    def entropy(self, logits: torch.Tensor) -> torch.Tensor:
        """Computes the entropy of the k most probable tokens of each row of logits (N, V), over log k: (N,)."""
        k = min(self.k, logits.shape[-1])
        top_NK = logits.topk(k, dim=-1, sorted=False).values
        return torch.special.entr(top_NK.softmax(-1)).sum(-1) / math.log(k)


def build(config: EaftConfig) -> Eaft:
    """Builds the loss of a `loss:` section."""
    return Eaft(config.eaft_alpha, config.eaft_k)
