"""APOLLO's AdamW."""

from __future__ import annotations

from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.optim._adamw import FloatMoments
from lamina.optim._apollo import ApolloAdamW


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """
    Raises:
        ConfigError: No matrix would be projected.
    """
    return ApolloAdamW(config, groups, FloatMoments())
