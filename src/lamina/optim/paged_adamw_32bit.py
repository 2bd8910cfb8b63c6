"""AdamW with float32 moments, in memory that moves out of the GPU's way."""

from __future__ import annotations

from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.optim._bitsandbytes import build_adamw, paged_moments


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """
    Raises:
        ConfigError: There is no CUDA device, or bitsandbytes is not installed.
    """
    return build_adamw(config, groups, paged_moments(config, groups, bits=32, instead="adamw_torch"))
