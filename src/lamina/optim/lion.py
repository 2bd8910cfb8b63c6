"""Lion: updates every weight by the sign of an interpolated mean, so that one moment suffices.

    w = (1 - lr decay) w - lr sign(b1 m + (1 - b1) g)        m = b2 m + (1 - b2) g

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lamina.config import TrainConfig


class Lion(torch.optim.Optimizer):
    """The Lion optimizer. Its state is the mean, float32."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every tensor that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                state = self.state[tensor]
                if "exp_avg" not in state:
                    state["exp_avg"] = torch.zeros_like(tensor)
                mean = state["exp_avg"]
                tensor.mul_(1.0 - lr * group["weight_decay"])
                tensor.add_(torch.lerp(mean, tensor.grad, 1.0 - beta1).sign_(), alpha=-lr)
                mean.lerp_(tensor.grad, 1.0 - beta2)


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Builds Lion with the configured betas, by default the paper's 0.9 and 0.99."""
    return Lion(groups, config.peak_learning_rate, config.betas(0.9, 0.99))
