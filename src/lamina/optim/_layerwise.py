"""Updates each tensor during the backward, as soon as its gradient exists, and then frees the gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.errors import TrainingError
from lamina.optim._adamw import Moments, MomentsAdamW


class Layerwise(MomentsAdamW):
    """Comes before an optimizer's class, and makes it layerwise.

    Attributes:
        gradient_norms: Tensor -> norm of its gradient in the latest step.
    """

    def __init__(self, config: TrainConfig, groups: list[dict[str, Any]], moments: Moments) -> None:
        super().__init__(config, groups, moments)  # pyright: ignore[reportCallIssue, reportArgumentType]
        self.gradient_norms: dict[torch.Tensor, torch.Tensor] = {}
        self._moving = False
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.register_post_accumulate_grad_hook(partial(self._take, group))

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Makes a backward inside the block update the tensors. A backward outside, to measure, changes nothing."""
        self.gradient_norms = {}
        self._moving = True
        try:
            yield
        finally:
            self._moving = False
        self.moments.settle()

    @torch.no_grad()
    def _take(self, group: dict[str, Any], tensor: torch.Tensor) -> None:
        if not self._moving:
            return
        assert tensor.grad is not None
        norm = tensor.grad.norm()
        if not torch.isfinite(norm):
            raise TrainingError(
                "a gradient is not finite, and other tensors were updated before, so the step cannot be skipped. "
                "Fix: resume from the last checkpoint with a lower train.learning_rate, or with the same optimizer "
                "without _layerwise, which skips such steps."
            )
        self.gradient_norms[tensor] = norm
        self.move(tensor, tensor.grad, group)
        tensor.grad = None
