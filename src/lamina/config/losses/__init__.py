"""The configuration half of every loss, found by discovery.

A loss is two files with the same name: `config/losses/NAME.py` has its fields (and must not import torch, so that a
configuration error is reported at once), and `losses/NAME.py` its math. Other packages add losses with entry points
(`lamina/plugins.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina import plugins
from lamina.config.families import any_of
from lamina.config.losses.base import LossConfig

LOSS_CONFIGS: dict[str, type[LossConfig]] = plugins.config_halves("losses", "CONFIG", LossConfig)
"""Each loss's configuration class, by name (the value of `loss.type`)."""

DEFAULT_LOSS = "cross_entropy"

if TYPE_CHECKING:
    AnyLossConfig = LossConfig
else:
    AnyLossConfig = any_of(LOSS_CONFIGS, DEFAULT_LOSS)

__all__ = ["DEFAULT_LOSS", "LOSS_CONFIGS", "AnyLossConfig", "LossConfig"]
