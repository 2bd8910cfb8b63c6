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

from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.config.optimizers import GaloreConfig
from lamina.errors import ConfigError, Problem
from lamina.optim._adamw import Moments, MomentsAdamW, State, Update, count
from lamina.optim._layerwise import Layerwise


class GaloreAdamW(MomentsAdamW):
    """AdamW; in groups marked `hidden`, matrices larger than the rank use projected gradients."""

    def __init__(self, config: TrainConfig, groups: list[dict[str, Any]], moments: Moments) -> None:
        """
        Raises:
            ConfigError: The rank is so large that no matrix would be projected.
        """
        self.settings = config.galore or GaloreConfig()
        check_rank(groups, self.settings.rank, "train.galore.rank", "GaLore")
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


class LayerwiseGaloreAdamW(Layerwise, GaloreAdamW):
    """GaLore that updates each tensor during the backward."""


def check_rank(groups: list[dict[str, Any]], rank: int, field: str, name: str) -> None:
    """Refuses a rank that leaves no matrix to project.

    Args:
        groups: The parameter groups.
        rank: What matrices are projected to.
        field: Its key.
        name: The optimizer's name in the message.

    Raises:
        ConfigError: No matrix is larger than the rank on both sides.
    """
    sides = [min(tensor.shape) for group in groups if group["hidden"] for tensor in group["params"]]
    if rank >= max(sides, default=0):
        message = (
            f"{rank} is not below the smaller side of any matrix that is projected (the largest has "
            f"{max(sides, default=0)}), so {name} would do nothing."
        )
        raise ConfigError(Problem(field, message, "lower it, or use another train.optim"))


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
