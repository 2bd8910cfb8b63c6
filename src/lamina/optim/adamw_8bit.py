"""AdamW with 8-bit moments: two bytes per parameter instead of eight."""

from __future__ import annotations

from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.optim._bitsandbytes import BnbMoments, bitsandbytes, build_adamw


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """
    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    return build_adamw(config, groups, BnbMoments(bitsandbytes(config.optim), bits=8))
