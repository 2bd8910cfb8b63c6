"""CPO: L = -log sigmoid(D) - alpha log p(chosen), where D = beta (log p(chosen) - log p(rejected)).

The first term is a mean over the pairs of the whole optimizer step, the second over their chosen tokens. There is no
reference. With e for `label_smoothing` and a(y) for log p(y) / |y|, `loss_type` makes the first term

    sigmoid    -(1 - e) log sigmoid(D) - e log sigmoid(-D)
    hinge      max(0, 1 - D)
    ipo        (a(chosen) - a(rejected) - 1 / (2 beta))^2

Xu et al. 2024, "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
arXiv:2401.08417.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lamina.config.losses.cpo import CpoConfig
from lamina.losses.pairs import ChosenLikelihood, PairLosses, Pairs


class Cpo(ChosenLikelihood):
    """Contrastive preference optimization; the formula is at the top of the file."""

    def __init__(self, config: CpoConfig) -> None:
        self.config = config

    @property
    def likelihood_weight(self) -> float:
        return self.config.cpo_alpha

    def losses(self, pairs: Pairs) -> PairLosses:
        beta, averages = self.config.beta, self.config.loss_type == "ipo"
        chosen = pairs.average_chosen if averages else pairs.chosen
        rejected = pairs.average_rejected if averages else pairs.rejected
        each, more = self._contrast(chosen - rejected), {}
        if self.likelihood_weight:
            more["nll_loss"] = self.negative_likelihood(pairs)
            each = each + self.likelihood_weight * more["nll_loss"]
        return PairLosses(each, beta * chosen, beta * rejected, more)

    def _contrast(self, difference: torch.Tensor) -> torch.Tensor:
        beta, smoothing = self.config.beta, self.config.label_smoothing
        match self.config.loss_type:
            case "hinge":
                return torch.relu(1 - beta * difference)
            case "ipo":
                return (difference - 1 / (2 * beta)) ** 2
        return -(1 - smoothing) * F.logsigmoid(beta * difference) - smoothing * F.logsigmoid(-beta * difference)


def build(config: CpoConfig) -> Cpo:
    """Builds the loss of a `loss:` section."""
    return Cpo(config)
