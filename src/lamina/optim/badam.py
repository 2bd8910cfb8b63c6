"""BAdam: AdamW on one decoder layer after the other."""

from __future__ import annotations

from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.optim._badam import BlockAdamW


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """
    Raises:
        ConfigError: No tensor is in a decoder layer, or there is no block to start with.
    """
    return BlockAdamW(config, groups)
