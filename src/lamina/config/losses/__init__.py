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

_GENERATED = "learns from answers that the model generates, which training does not do yet"
_GIVEN = "use dpo, simpo or orpo with pairs of answers, kto with labels, or distillation with a teacher"

NO_LOSSES: Mapping[str, tuple[str, str]] = {
    "ppo": (
        "PPO trains a second model for its value estimates, and TRL removed it for want of use; GRPO and RLOO "
        "replaced it where answers are generated (they are not here yet), DPO and KTO where there are pairs or labels",
        _GIVEN,
    ),
    "grpo": (f"GRPO {_GENERATED}", _GIVEN),
    "rloo": (f"RLOO {_GENERATED}", _GIVEN),
    "gkd": (f"GKD {_GENERATED}", "use distillation, which learns on given answers"),
    "ipo": ("IPO is a form of DPO", "write `loss: {type: dpo, loss_type: [ipo]}`"),
    "sft": ("supervised fine-tuning has another name here", "use cross_entropy, the default"),
}
"""What users may look for as `loss.type`: why it is not there, and what to do instead."""

if TYPE_CHECKING:
    AnyLossConfig = LossConfig
else:
    AnyLossConfig = any_of(LOSS_CONFIGS, DEFAULT_LOSS)

__all__ = ["DEFAULT_LOSS", "LOSS_CONFIGS", "NO_LOSSES", "AnyLossConfig", "LossConfig"]
