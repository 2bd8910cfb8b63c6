"""Sign descent: every parameter moves by the learning rate, against the sign of its gradient."""

from collections.abc import Callable
from typing import Any

import torch

from lamina.config import TrainConfig


class Signs(torch.optim.Optimizer):
    """It has no state."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    tensor.add_(tensor.grad.sign(), alpha=-group["lr"])


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> Signs:
    """Builds the optimizer of a `train:` section."""
    return Signs(groups, {"lr": config.peak_learning_rate})
