"""Muon for hidden matrices, which orthogonalizes their momentum; AdamW for all other tensors.

    m = 0.95 m + 0.05 g        O = orthogonal(0.05 g + 0.95 m) by five Newton-Schulz steps in bfloat16
    W = (1 - lr decay) W - lr 0.2 sqrt(max(rows, columns)) O

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", in torch's implementation. The factor is
that of Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982: it makes updates as large as AdamW's, so
that both parts can share a learning rate. AdamW updates embeddings, the output head, norms and biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.errors import ConfigError, Problem

MOMENTUM = 0.95


class MuonWithAdamW(torch.optim.Optimizer):
    """Combines both into one optimizer: one list of groups, one dictionary of states."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        for part in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every tensor that has a gradient."""
        assert closure is None
        for part in self.parts:
            part.step()


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """
    Raises:
        ConfigError: No hidden matrix is trained.
    """
    lr = config.peak_learning_rate
    hidden = [group for group in groups if group["hidden"]]
    others = [group for group in groups if not group["hidden"]]
    if not hidden:
        message = "muon is for matrices between embedding and head, and this method trains none."
        raise ConfigError(Problem("train.optim", message, "use adamw_torch"))
    parts: list[torch.optim.Optimizer] = [
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.0, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    ]
    if others:
        parts.append(torch.optim.AdamW(others, lr=lr, betas=config.betas(), eps=config.epsilon, fused=True))
    return MuonWithAdamW(parts)
