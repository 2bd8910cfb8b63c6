"""The configuration half of every loss, found by discovery.

A loss is two files with the same name: `config/losses/NAME.py` has its fields (and must not import torch, so that a
configuration error is reported at once), and `losses/NAME.py` its math. Other packages add losses with entry points
(`lamina/plugins.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lamina import plugins
from lamina.config.families import any_of
from lamina.config.losses.base import LossConfig

LOSS_CONFIGS: dict[str, type[LossConfig]] = plugins.config_halves("losses", "CONFIG", LossConfig)
"""Each loss's configuration class, by name (the value of `loss.type`)."""

DEFAULT_LOSS = "cross_entropy"

NO_LOSSES: Mapping[str, str] = {
    "ppo": "PPO is not here: it trains a second model for its value estimates, and TRL removed it for want of use. "
    "Where there are pairs of answers, dpo replaced it, and kto where there are labels; where answers are generated, "
    "GRPO and RLOO did, which are not here yet",
    "grpo": "GRPO learns from answers that the model generates, which training does not do yet. What is here learns "
    "from pairs of answers (dpo, simpo, orpo), from labels (kto), or from a teacher (distillation)",
    "rloo": "RLOO learns from answers that the model generates, which training does not do yet. What is here learns "
    "from pairs of answers (dpo, simpo, orpo), from labels (kto), or from a teacher (distillation)",
    "ipo": "IPO is a form of dpo: `loss: {type: dpo, loss_type: [ipo]}`",
    "gkd": "GKD is distillation on answers that the model generates; on given answers, it is distillation",
    "sft": "SFT is cross_entropy, the default",
}
"""What users may look for as `loss.type`, and what there is instead."""

if TYPE_CHECKING:
    AnyLossConfig = LossConfig
else:
    AnyLossConfig = any_of(LOSS_CONFIGS, DEFAULT_LOSS)

__all__ = ["DEFAULT_LOSS", "LOSS_CONFIGS", "NO_LOSSES", "AnyLossConfig", "LossConfig"]
