"""LoftQ: a weight as a quantized one and a low-rank product that makes up for what rounding took from it.

Li et al. 2023, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", arXiv:2310.08659. In turns,

    Q = quantized(W - s B A)          A, B = the best of rank r for W - Q

of which the first round alone is the plain quantized weight with an adapter that knows its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lamina.machine.seeding import seeded

# Of the subspace iteration that finds A and B: with these it takes 99.5% or more of what there is to take (rank 16 and
# 64 on the rounding errors of SmolLM2's weights), in a fraction of a full decomposition's time.
_OVERSAMPLING = 2
_ITERATIONS = 8


@dataclass(frozen=True)
class LoftqPlan:
    """Which weights of a model are split, and how.

    Attributes:
        rounds: At most so many.
        modules: Module -> (r, s).
    """

    rounds: int
    modules: Mapping[str, tuple[int, float]]

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"rounds": self.rounds, "modules": {name: list(part) for name, part in self.modules.items()}}


@dataclass(frozen=True)
class Split:
    """A weight in two parts.

    Attributes:
        rest: What is to be quantized, (out_features, in_features), in the weight's dtype.
        A: (r, in_features), float32.
        B: (out_features, r), float32.
        errors: |W - Q - s B A| / |W| (Frobenius norms): at first without B A, then after each round that was kept.
    """

    rest: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    errors: list[float]


def split_weight(
    weight: torch.Tensor, r: int, scaling: float, rounds: int, rounded: Callable[[torch.Tensor], torch.Tensor]
) -> Split:
    """Splits W so that quantized(rest) + s B A is near it.

    Args:
        weight: W, (out_features, in_features).
        r: Rank of B A.
        scaling: s, which A and B are divided by.
        rounds: At most so many; it stops before when a round gains nothing.
        rounded: Quantizes a weight and turns it back.

    Returns:
        The best round's.
    """
    exact = weight.float()
    norm = max(float(exact.norm()), torch.finfo(torch.float32).tiny)
    rest, errors, best = weight, [], None
    for _ in range(rounds):
        residual = exact - rounded(rest).float()
        if not errors:
            errors.append(float(residual.norm()) / norm)
        A, B = _factors(residual, r, scaling)
        product = scaling * (B @ A)
        error = float((residual - product).norm()) / norm
        if best is not None and error >= errors[-1]:
            break
        errors.append(error)
        best = Split(rest, A, B, errors)
        rest = (exact - product).to(weight.dtype)
    assert best is not None, rounds
    return best


def _factors(residual: torch.Tensor, r: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B with s B A as near to the residual as rank r allows; the same ones whatever the random state."""
    width = min(_OVERSAMPLING * r, *residual.shape)
    with seeded(0, residual.device):
        U, S, V = torch.svd_lowrank(residual, width, niter=_ITERATIONS)
    root = (S[:r] / scaling).sqrt()
    return root[:, None] * V.T[:r], U[:, :r] * root
