"""SimPO: L = -log sigmoid(beta (a(chosen) - a(rejected)) - gamma), where a is log p per token: a(y) = log p(y) / |y|.

The loss is a mean over the pairs of the whole optimizer step. There is no reference. With e for `label_smoothing`, it
is -(1 - e) log sigmoid(D) - e log sigmoid(-D).

Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv:2405.14734.
"""

from __future__ import annotations

import torch.nn.functional as F

from lamina.config.losses.simpo import SimpoConfig
from lamina.losses.pairs import PairLoss, PairLosses, Pairs


class Simpo(PairLoss):
    """Simple preference optimization; the formula is at the top of the file."""

    def __init__(self, beta: float, gamma: float, smoothing: float) -> None:
        self.beta, self.gamma, self.smoothing = beta, gamma, smoothing

    def losses(self, pairs: Pairs) -> PairLosses:
        chosen, rejected = self.beta * pairs.average_chosen, self.beta * pairs.average_rejected
        difference = chosen - rejected - self.gamma
        smoothing = self.smoothing
        each = -(1 - smoothing) * F.logsigmoid(difference) - smoothing * F.logsigmoid(-difference)
        return PairLosses(each, chosen, rejected, {})


def build(config: SimpoConfig) -> Simpo:
    """Builds the loss of a `loss:` section."""
    return Simpo(config.beta, config.simpo_gamma, config.label_smoothing)
