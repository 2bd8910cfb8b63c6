"""Dynamic fine-tuning: cross entropy in which each supervised token weighs as much as it is probable.

    L = - sum over supervised tokens t of sg(p_t) log p_t        p_t = p(token t | tokens before it in its document)

divided by the number of supervised tokens of the whole optimizer step. sg has no gradient, so a token's gradient is
p_t times that of cross entropy, and that of -p_t: what training makes larger is the mean probability of a token.

Wu et al. 2025, "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification",
arXiv:2508.05629.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from lamina.compute.ops.log_probs import log_probs_of
from lamina.config.losses.dft import DftConfig
from lamina.data.batch import Batch
from lamina.data.example import EncodedExample
from lamina.losses.answers import supervised_logits, token_log_probs
from lamina.losses.base import Loss, LossSum, Metric
from lamina.structure.head import Head


class Dft(Loss):
    """Dynamic fine-tuning; the formula is at the top of the file."""

    is_per_token = True

    def compute(self, model: PreTrainedModel, head: Head, batches: Sequence[Batch]) -> LossSum:
        log_probs_N = torch.cat([token_log_probs(model, head, batch) for batch in batches]).double()
        return LossSum(weighed(log_probs_N).sum().float(), metrics_of(log_probs_N))

    def standing(self, loss: float, metrics: Mapping[str, float]) -> float:
        return 1.0 - metrics["probability"]

    def formula(self, logits: Sequence[torch.Tensor], example: EncodedExample) -> torch.Tensor:
        return weighed(log_probs_of(*supervised_logits(logits[0], example))).sum()


def build(config: DftConfig) -> Dft:
    """Builds the loss of a `loss:` section."""
    return Dft()


def weighed(log_probs: torch.Tensor) -> torch.Tensor:
    """Computes -sg(p) log p of each token, (N,), from log p."""
    return -log_probs.detach().exp() * log_probs


def metrics_of(log_probs: torch.Tensor) -> dict[str, Metric]:
    """Returns the means of -log p, which is cross entropy's loss, and of p, to be read beside a weighted loss."""
    known, count = log_probs.detach(), float(len(log_probs))
    return {"nll_loss": Metric(-known.sum(), count), "probability": Metric(known.exp().sum(), count)}
