"""APOLLO: the gradient itself is the update, scaled by what Adam would do to a small projection of it.

    R = P G        P of r rows, N(0, 1/r), drawn anew every `update_proj_gap` steps        (or R = G P^T)
    N = m / (sqrt(v) + eps), Adam's moments of R
    U = G diag(s)        s_j = |N_j| / |R_j| for each column j        (or rows; or one s for the whole matrix)
    U is scaled down where |U| is more than 1.01 times that of the step before
    W = (1 - lr decay) W - lr c sqrt(scale) U        c = sqrt(1 - b2^t) / (1 - b1^t)

P takes the shorter side to r, so R has as many columns (or rows) as G, and only R's moments are stored. With one s and
r = 1 this is APOLLO-Mini, whose state is three vectors for each matrix.

Zhu et al. 2024, "APOLLO: SGD-like Memory, AdamW-level Performance", arXiv:2412.05270. The limit is that of Fira (Chen
et al. 2024, arXiv:2410.01623), before the bias correction c, as in the authors' package. Unlike there, a step in which
a matrix has no gradient leaves its limit as it was: growth from 0 would never end.

A projection is a function of the matrix's place and of how many came before, and part of the optimizer's state: runs
are the same in any process, and a resumed run has the same one.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.config.optimizers import ApolloConfig
from lamina.optim._adamw import Moments, MomentsAdamW, State, Update, count
from lamina.optim._galore import check_rank
from lamina.optim._layerwise import Layerwise

# By how much the norm of a matrix's update may grow in a step.
GROWTH = 1.01

_TINY = 1e-8

# More than the projections that a matrix has in a run, so that no two have the same seed.
_TURNS = 1_000_003


class ApolloAdamW(MomentsAdamW):
    """AdamW; in groups marked `hidden`, matrices larger than the rank are updated by their scaled gradients."""

    def __init__(self, config: TrainConfig, groups: list[dict[str, Any]], moments: Moments) -> None:
        """
        Raises:
            ConfigError: The rank is so large that no matrix would be projected.
        """
        self.settings = config.apollo or ApolloConfig()
        check_rank(groups, self.settings.rank, "train.apollo.rank", "APOLLO")
        super().__init__(groups, config.peak_learning_rate, config.betas(), config.epsilon, moments)
        tensors = [tensor for group in self.param_groups for tensor in group["params"]]
        self._places = {tensor: place for place, tensor in enumerate(tensors)}

    def move(self, tensor: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        settings = self.settings
        if not group["hidden"] or settings.rank >= min(tensor.shape):
            super().move(tensor, grad, group)
            return
        state = self.state[tensor]
        step = count(state)
        if (step - 1) % settings.update_proj_gap == 0:
            state["projection"] = self._projection(grad, self._places[tensor], (step - 1) // settings.update_proj_gap)
        by_column = is_wide(grad)
        low = state["projection"] @ grad if by_column else grad @ state["projection"].T
        direction = torch.zeros_like(low)
        self.moments.move_(direction, low, state, Update(step, 1.0, group["betas"], group["eps"]))
        beta1, beta2 = group["betas"]
        correction = math.sqrt(1.0 - beta2**step) / (1.0 - beta1**step)
        factor = _norm(direction / correction, by_column, settings) / (_norm(low, by_column, settings) + _TINY)
        update = limited(grad * factor, state)
        tensor.mul_(1.0 - group["lr"] * group["weight_decay"])
        tensor.add_(update, alpha=-group["lr"] * correction * math.sqrt(settings.scale))

    def _projection(self, grad: torch.Tensor, place: int, turn: int) -> torch.Tensor:
        if self.settings.proj == "random":
            return random_projection(self.settings.rank, min(grad.shape), place, turn).to(grad)
        U, _, Vh = torch.linalg.svd(grad, full_matrices=False)
        rank = self.settings.rank
        return (U[:, :rank].T if is_wide(grad) else Vh[:rank]).contiguous()


class LayerwiseApolloAdamW(Layerwise, ApolloAdamW):
    """APOLLO that updates each tensor during the backward."""


def is_wide(grad: torch.Tensor) -> bool:
    """Whether a matrix has fewer rows than columns, so that its rows are projected and each column has a factor."""
    return grad.shape[0] < grad.shape[1]


def random_projection(rank: int, side: int, place: int, turn: int) -> torch.Tensor:
    """Draws P, (rank, side), float32, on the CPU.

    Args:
        rank: Its rows.
        side: The matrix's shorter side.
        place: The matrix's number.
        turn: How many projections it had before.
    """
    generator = torch.Generator().manual_seed(_TURNS * place + turn)
    return torch.randn(rank, side, generator=generator) / math.sqrt(rank)


def limited(update: torch.Tensor, state: State) -> torch.Tensor:
    """Scales an update down to `GROWTH` times the norm of the one before, which is kept in the state."""
    norm = update.norm()
    before = state.get("norm", torch.zeros_like(norm))
    excess = torch.where(before > 0.0, norm / (before + _TINY), 1.0).clamp(min=GROWTH) / GROWTH
    state["norm"] = torch.where(norm > 0.0, norm / excess, before)
    return update / excess


def _norm(low: torch.Tensor, by_column: bool, settings: ApolloConfig) -> torch.Tensor:
    """Norm of each column or row, with that shape, or of the whole."""
    return low.norm() if settings.scale_type == "tensor" else low.norm(dim=0 if by_column else 1, keepdim=True)
