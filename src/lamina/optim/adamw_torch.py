"""torch's own AdamW, in one fused pass."""

from __future__ import annotations

from typing import Any

import torch

from lamina.config import TrainConfig


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Builds AdamW with float32 moments."""
    return torch.optim.AdamW(
        groups, lr=config.peak_learning_rate, betas=config.betas(), eps=config.epsilon, weight_decay=0.0, fused=True
    )
