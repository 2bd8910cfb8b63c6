"""ORPO: L = -a(chosen) - beta log sigmoid(log odds(chosen) - log odds(rejected)), where a is log p per token.

    a(y) = log p(y) / |y|        log odds(y) = a(y) - log(1 - exp(a(y)))

The loss is a mean over the pairs of the whole optimizer step. There is no reference.

Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", arXiv:2403.07691.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lamina.config.losses.orpo import OrpoConfig
from lamina.losses.pairs import PairLoss, PairLosses, Pairs


class Orpo(PairLoss):
    """Odds ratio preference optimization; the formula is at the top of the file."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def losses(self, pairs: Pairs) -> PairLosses:
        chosen, rejected = pairs.average_chosen, pairs.average_rejected
        log_odds = (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))
        ratio = F.logsigmoid(log_odds)
        more = {"nll_loss": -chosen, "log_odds_ratio": ratio, "log_odds_chosen": log_odds}
        return PairLosses(-chosen - self.beta * ratio, self.beta * chosen, self.beta * rejected, more)


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """Computes log(1 - exp(x)) for x < 0 without cancellation (Maechler 2012); at 0, as close as the dtype allows."""
    x = x.clamp_max(-torch.finfo(x.dtype).tiny)
    small = x > -0.6931471805599453  # -log 2
    # Each branch gets a harmless value where the other is taken, so that no gradient is NaN.
    by_expm1 = torch.log(-torch.expm1(torch.where(small, x, -1.0)))
    by_log1p = torch.log1p(-torch.exp(torch.where(small, -1.0, x)))
    return torch.where(small, by_expm1, by_log1p)


def build(config: OrpoConfig) -> Orpo:
    """Builds the loss of a `loss:` section."""
    return Orpo(config.beta)
