"""GaLore's AdamW with float32 moments."""

from __future__ import annotations

from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.optim._adamw import FloatMoments
from lamina.optim._galore import GaloreAdamW


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """
    Raises:
        ConfigError: No matrix would be projected.
    """
    return GaloreAdamW(config, groups, FloatMoments())
