"""The dynamic loss scale of training in float16, as in Micikevicius et al. 2018, "Mixed Precision Training".

float16 has no numbers between 0 and 6e-8, where many gradients of activations lie. So the loss is multiplied by a
scale, and the gradients of the adapter, which are float32, are divided by it again. A scale that is too large makes
them infinite: then the step is skipped and the scale is halved. After enough steps that went well it is doubled. The
numbers are those of `torch.amp.GradScaler`, and all are powers of two, so that scaling rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

FIRST = 2.0**16
GROWTH, BACKOFF = 2.0, 0.5
GROWTH_INTERVAL = 2000

# A loss that overflows even at this scale does so for another reason.
SMALLEST = 1.0


@dataclass
class LossScale:
    """A loss scale and how it came to be.

    Attributes:
        scale: What the loss is multiplied by.
        good_steps: Steps since it last changed, all of which went well.
    """

    scale: float = FIRST
    good_steps: int = 0

    @classmethod
    def of(cls, dtype: torch.dtype, scale: float | None, good_steps: int) -> LossScale | None:
        """Returns the scale that a dtype needs, as a checkpoint left it; None for a dtype that needs none."""
        if dtype != torch.float16:
            return None
        return cls(FIRST if scale is None else scale, good_steps)

    def overflow(self) -> str:
        """Returns the sentence for the user on a step whose gradient overflowed."""
        return f"the gradient overflowed in float16, so the step was skipped; the loss scale is {self.scale:g} now."

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Returns the loss to go backward from."""
        return loss * self.scale

    @torch.no_grad()
    def unscale(self, parameters: Iterable[torch.Tensor]) -> None:
        """Divides the gradients by the scale, in place."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1.0 / self.scale)

    def update(self, finite: bool) -> None:
        """Takes note of a step, whose gradients were finite or not."""
        if not finite:
            self.scale, self.good_steps = max(self.scale * BACKOFF, SMALLEST), 0
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_INTERVAL and math.isfinite(self.scale * GROWTH):
            self.scale, self.good_steps = self.scale * GROWTH, 0

    @property
    def at_its_smallest(self) -> bool:
        """Whether it cannot become smaller."""
        return self.scale <= SMALLEST
