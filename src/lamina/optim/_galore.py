"""GaLore: AdamW whose moments are stored in a low-rank subspace of each matrix's gradient.

    U S V^T = svd(G) every `update_proj_gap` steps        L = first r columns of U   (or R = first r rows of V^T)
    N = Adam(L^T G)        W = W - lr scale L N                                      (or N = Adam(G R^T), N R)

Zhao et al. 2024, "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", arXiv:2403.03507.

When the subspace changes, the moments are projected to the new one. With C = L'^T L from the old basis to the new one,
the mean becomes C m, its projection, whatever signs the decomposition gave the vectors. The square becomes
(C o C) v + (1 - rowsum(C o C)) mean(v). The first term is the variance of C g if the components of g vary
independently. The second fills the part of a new direction outside of the old subspace with the average, since zero
there would make the next steps three times too large.

L, R and the moments are plain tensors in the optimizer's state, so that a resumed run restores exactly the same ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.config.optimizers import GaloreConfig
from lamina.errors import ConfigError, Problem, TrainingError
from lamina.optim._adamw import Moments, MomentsAdamW, State, Update, count


class GaloreAdamW(MomentsAdamW):
    """AdamW; in groups marked `hidden`, matrices larger than the rank use projected gradients."""

    def __init__(self, config: TrainConfig, groups: list[dict[str, Any]], moments: Moments) -> None:
        """
        Raises:
            ConfigError: The rank is so large that no matrix would be projected.
        """
        self.settings = config.galore or GaloreConfig()
        sides = [min(tensor.shape) for group in groups if group["hidden"] for tensor in group["params"]]
        if self.settings.rank >= max(sides, default=0):
            message = (
                f"{self.settings.rank} is not below the smaller side of any matrix that is projected (the largest has "
                f"{max(sides, default=0)}), so GaLore would do nothing."
            )
            raise ConfigError(Problem("train.galore.rank", message, "lower it, or use another train.optim"))
        super().__init__(groups, config.peak_learning_rate, config.betas(), config.epsilon, moments)

    def move(self, tensor: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        settings = self.settings
        if not group["hidden"] or settings.rank >= min(tensor.shape):
            super().move(tensor, grad, group)
            return
        state = self.state[tensor]
        step = count(state)
        if (step - 1) % settings.update_proj_gap == 0:
            update_subspace(state, grad, settings, self.moments)
        low = project(grad, state)
        direction = torch.zeros_like(low)
        self.moments.move_(direction, low, state, Update(step, 1.0, group["betas"], group["eps"]))
        tensor.mul_(1.0 - group["lr"] * group["weight_decay"])
        tensor.add_(project_back(direction, state), alpha=group["lr"] * settings.scale)


class LayerwiseGaloreAdamW(GaloreAdamW):
    """GaLore that updates each tensor during the backward, as soon as its gradient exists, and then frees the gradient.

    Attributes:
        gradient_norms: Tensor -> norm of its gradient in the latest step.
    """

    def __init__(self, config: TrainConfig, groups: list[dict[str, Any]], moments: Moments) -> None:
        super().__init__(config, groups, moments)
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


def project(grad: torch.Tensor, state: State) -> torch.Tensor:
    """Computes L^T G R^T, with the factors that exist."""
    low = state["left"].T @ grad if "left" in state else grad
    return low @ state["right"].T if "right" in state else low


def project_back(low: torch.Tensor, state: State) -> torch.Tensor:
    """Computes L N R, with the factors that exist."""
    high = state["left"] @ low if "left" in state else low
    return high @ state["right"] if "right" in state else high


def update_subspace(state: State, grad: torch.Tensor, settings: GaloreConfig, moments: Moments) -> None:
    """Stores the gradient's subspace in the state, and projects existing moments to it."""
    old = {side: state[side] for side in ("left", "right") if side in state}
    U, _, Vh = torch.linalg.svd(grad, full_matrices=False)
    for side in _sides(grad, settings.proj_type):
        basis = U[:, : settings.rank] if side == "left" else Vh[: settings.rank]
        state[side] = basis.contiguous()
    if not old:
        return
    mean, square = moments.read(state)
    if "left" in old:
        mean, square = project_moments(mean, square, state["left"].T @ old["left"])
    if "right" in old:
        mean, square = project_moments(mean.T, square.T, state["right"] @ old["right"].T)
        mean, square = mean.T, square.T
    moments.write(state, mean, square)


def project_moments(
    mean: torch.Tensor, square: torch.Tensor, change: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Projects moments to a new basis of their rows.

    Args:
        mean: (r, n).
        square: (r, n).
        change: C, (r, r): each row is a new basis vector in terms of the old ones.
    """
    weights = change.square()
    outside = (1.0 - weights.sum(dim=1, keepdim=True)).clamp(min=0.0)
    return change @ mean, weights @ square + outside * square.mean(dim=0, keepdim=True)


def _sides(grad: torch.Tensor, proj_type: str) -> tuple[str, ...]:
    rows, columns = grad.shape
    shorter, longer = ("left", "right") if rows < columns else ("right", "left")
    sides = {"std": (shorter,), "reverse_std": (longer,), "full": ("left", "right")}
    return sides.get(proj_type, (proj_type,))
