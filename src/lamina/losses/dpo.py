"""DPO: L = -log sigmoid(beta (c - r)), where c and r are the log-ratios of the chosen and the rejected answer.

    c = log p(chosen) - log p_ref(chosen)        r = log p(rejected) - log p_ref(rejected)

The loss is a mean over the pairs of the whole optimizer step. At the start c = r = 0 and L = log 2. With e for
`label_smoothing`, D = beta (c - r), and |.| for the tokens of an answer, `loss_type` has

    sigmoid       -(1 - e) log sigmoid(D) - e log sigmoid(-D)                  e > 0: cDPO (Mitchell 2023)
    robust        (-(1 - e) log sigmoid(D) + e log sigmoid(-D)) / (1 - 2 e)    Chowdhury et al. 2024, arXiv:2403.00409
    hinge         max(0, 1 - D)                                                SLiC, Zhao et al. 2023, arXiv:2305.10425
    ipo           (c / |chosen| - r / |rejected| - 1 / (2 beta))^2             Azar et al. 2023, arXiv:2310.12036
    sigmoid_norm  -log sigmoid(beta (c / |chosen| - r / |rejected|))
    apo_zero      1 - sigmoid(beta c) + sigmoid(beta r)                        D'Oosterlinck et al. 2024,
    apo_down      sigmoid(beta c) + 1 - sigmoid(D)                             arXiv:2408.06266
    bco_pair      -log sigmoid(beta c) - log sigmoid(-beta r)                  Jung et al. 2024, arXiv:2404.04656
    sft           -log p(chosen), a mean over the chosen tokens of the whole step

A list of them is added up with `loss_weights`: [sigmoid, sft] is RPO (Pang et al. 2024, arXiv:2404.19733), and
[sigmoid, bco_pair, sft] is MPO (Wang et al. 2024, arXiv:2411.10442).

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
arXiv:2305.18290.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lamina.config.losses.dpo import DpoConfig
from lamina.losses.pairs import REFERENCE, ChosenLikelihood, PairLosses, Pairs


class Dpo(ChosenLikelihood):
    """Direct preference optimization; the formulas are at the top of the file."""

    needs_reference = True

    def __init__(self, config: DpoConfig) -> None:
        self.beta = config.beta
        self.smoothing = config.label_smoothing
        weights = zip(config.loss_type, config.loss_weights or [1.0] * len(config.loss_type), strict=True)
        self.weights = {name: weight for name, weight in weights if weight}

    @property
    def likelihood_weight(self) -> float:
        return self.weights.get("sft", 0.0)

    def losses(self, pairs: Pairs) -> PairLosses:
        chosen = pairs.chosen - pairs.values(REFERENCE.format(0))
        rejected = pairs.rejected - pairs.values(REFERENCE.format(1))
        total = torch.zeros_like(chosen)
        more = {}
        for name, weight in self.weights.items():
            if name == "sft":
                each = more["nll_loss"] = self.negative_likelihood(pairs)
            else:
                each = self._of_ratios(name, chosen, rejected, pairs)
            total = total + weight * each
        return PairLosses(total, self.beta * chosen, self.beta * rejected, more)

    def _of_ratios(self, name: str, chosen: torch.Tensor, rejected: torch.Tensor, pairs: Pairs) -> torch.Tensor:
        beta, smoothing, difference = self.beta, self.smoothing, self.beta * (chosen - rejected)
        match name:
            case "sigmoid":
                return -(1 - smoothing) * F.logsigmoid(difference) - smoothing * F.logsigmoid(-difference)
            case "robust":
                clean, flipped = -F.logsigmoid(difference), -F.logsigmoid(-difference)
                return ((1 - smoothing) * clean - smoothing * flipped) / (1 - 2 * smoothing)
            case "hinge":
                return torch.relu(1 - difference)
            case "bco_pair":
                return -F.logsigmoid(beta * chosen) - F.logsigmoid(-beta * rejected)
            case "apo_zero":
                return 1 - torch.sigmoid(beta * chosen) + torch.sigmoid(beta * rejected)
            case "apo_down":
                return torch.sigmoid(beta * chosen) + 1 - torch.sigmoid(difference)
        per_token = chosen / pairs.chosen_lengths - rejected / pairs.rejected_lengths
        if name == "ipo":
            return (per_token - 1 / (2 * beta)) ** 2
        assert name == "sigmoid_norm", name
        return -F.logsigmoid(beta * per_token)

    @property
    def cure(self) -> str:
        if "sft" in self.weights:
            return "A larger weight of sft in loss.loss_weights keeps chosen answers probable."
        return "loss.loss_type=[sigmoid,sft] (RPO) keeps chosen answers probable; so does a lower train.learning_rate."


def build(config: DpoConfig) -> Dpo:
    """Builds the loss of a `loss:` section."""
    return Dpo(config)
