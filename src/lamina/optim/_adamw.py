"""AdamW with interchangeable storage of its moments, behind the interface `Moments`.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = (1 - lr decay) w - lr m' / (sqrt(v') + eps)        m' = m / (1 - b1^t), v' = v / (1 - b2^t)

Loshchilov and Hutter 2017, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Update:
    """The hyperparameters of one update.

    Attributes:
        step: Number of this tensor's update, from 1.
        lr: Learning rate.
        betas: Decay rates of the gradient's mean and square.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay, multiplied by the learning rate.
    """

    step: int
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float = 0.0


class Moments(ABC):
    """How the two moments of a tensor are stored in its state."""

    @abstractmethod
    def move_(self, target: torch.Tensor, grad: torch.Tensor, state: State, update: Update) -> None:
        """Updates the moments, initially zero, with a gradient, and updates `target` of the same shape by them."""

    @abstractmethod
    def read(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the mean and the square, float32."""

    @abstractmethod
    def write(self, state: State, mean: torch.Tensor, square: torch.Tensor) -> None:
        """Replaces the moments by others of the same shape."""

    def settle(self) -> None:
        """Called after all tensors of a step are updated."""
        return


class FloatMoments(Moments):
    """Moments in float32, eight bytes per parameter."""

    def move_(self, target: torch.Tensor, grad: torch.Tensor, state: State, update: Update) -> None:
        if "exp_avg" not in state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(target), torch.zeros_like(target)
        mean, square = self.read(state)
        beta1, beta2 = update.betas
        mean.lerp_(grad, 1.0 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        root = (square / (1.0 - beta2**update.step)).sqrt_().add_(update.eps)
        target.mul_(1.0 - update.lr * update.weight_decay)
        target.addcdiv_(mean, root, value=-update.lr / (1.0 - beta1**update.step))

    def read(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        return state["exp_avg"], state["exp_avg_sq"]

    def write(self, state: State, mean: torch.Tensor, square: torch.Tensor) -> None:
        state["exp_avg"], state["exp_avg_sq"] = mean.contiguous(), square.contiguous()


class MomentsAdamW(torch.optim.Optimizer):
    """AdamW, tensor by tensor. Its state consists of tensors, so that it can be saved as tensors."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, moments: Moments
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.moments = moments

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every tensor that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self.move(tensor, tensor.grad, group)
        self.moments.settle()

    def move(self, tensor: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        """Updates one tensor by its gradient."""
        state = self.state[tensor]
        update = Update(count(state), group["lr"], group["betas"], group["eps"], group["weight_decay"])
        self.moments.move_(tensor, grad, state, update)


def count(state: State) -> int:
    """Increments and returns the number of a tensor's updates. It is kept on the CPU, where it is used."""
    step = int(state["step"]) + 1 if "step" in state else 1
    state["step"] = torch.tensor(float(step))
    return step
