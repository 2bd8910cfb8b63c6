"""LoftQ: splits a weight into a quantized one and a low-rank product that approximates the quantization error.

Li et al. 2023, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", arXiv:2310.08659. It alternates

    Q = quantized(W - s B A)          s B A = the best approximation of W - Q of rank r

The first round gives the plain quantized weight, with an adapter that approximates its error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lamina.machine.seeding import seeded

# Settings of the subspace iteration for A and B. With these it captures at least 99.5% of what a full decomposition
# does (rank 16 and 64 on the rounding errors of SmolLM2's weights), in a fraction of the time.
_OVERSAMPLING = 2
_ITERATIONS = 8


@dataclass(frozen=True)
class LoftqPlan:
    """Which weights of a model LoftQ splits, and how.

    Attributes:
        rounds: Maximum number of rounds.
        modules: Module name -> (r, s).
    """

    rounds: int
    modules: Mapping[str, tuple[int, float]]

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {"rounds": self.rounds, "modules": {name: list(part) for name, part in self.modules.items()}}


@dataclass(frozen=True)
class Split:
    """A weight that LoftQ has split.

    Attributes:
        rest: The part to quantize, (out_features, in_features), in the weight's dtype.
        A: (r, in_features), float32.
        B: (out_features, r), float32.
        errors: |W - Q - s B A| / |W| (Frobenius norms): first without B A, then after each round that was kept.
    """

    rest: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    errors: list[float]


def split_weight(
    weight: torch.Tensor, r: int, scaling: float, rounds: int, rounded: Callable[[torch.Tensor], torch.Tensor]
) -> Split:
    """Splits W so that quantized(rest) + s B A approximates it.

    Args:
        weight: W, (out_features, in_features).
        r: Rank of B A.
        scaling: s, which A and B are divided by.
        rounds: Maximum number of rounds; stops earlier if a round does not reduce the error.
        rounded: Quantizes and dequantizes a weight.

    Returns:
        The result of the best round.
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
    """Computes A and B such that s B A is the best approximation of the residual of rank r; deterministic."""
    width = min(_OVERSAMPLING * r, *residual.shape)
    with seeded(0, residual.device):
        U, S, V = torch.svd_lowrank(residual, width, niter=_ITERATIONS)
    root = (S[:r] / scaling).sqrt()
    return root[:, None] * V.T[:r], U[:, :r] * root
