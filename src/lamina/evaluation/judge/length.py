"""The win rate if both answers were equally long: what is left when longer answers do not win by being longer.

As AlpacaEval 2 does (Dubois et al. 2024), in its simplest form: a logistic regression of the verdicts on the difference
in length, P(a wins) = s(b0 + b1 tanh(d / sd(d))). The win rate at no difference is s(b0). Ties are halves. A weak pull
of b1 towards 0 keeps it finite where length parts the verdicts perfectly; b0 is pulled as if each side had won half a
row more. The interval is that of b0, with errors that hold for rows in clusters.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lamina.evaluation.statistics.rows import cluster_numbers

# Rows that are no tie; with fewer there is no regression.
FEWEST = 10

_PULL = 0.25


@dataclass(frozen=True)
class LengthControlled:
    """A win rate without the pull of length.

    Attributes:
        value: a's win rate at equal lengths.
        low, high: Ends of its interval.
        slope: b1: above 0 the judge prefers the longer answer.
    """

    value: float
    low: float
    high: float
    slope: float


def length_controlled(
    scores: Sequence[float], differences: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95
) -> LengthControlled | None:
    """Computes the win rate at equal lengths; None where fewer than ten rows are decided, or all lengths are equal.

    Args:
        scores: 1 where a wins, 0 where b does, 0.5 for a tie.
        differences: By how many characters a's answer is longer.
        clusters: The name of each row's cluster.
        confidence: Of the interval.
    """
    y, lengths = np.asarray(scores, dtype=float), np.asarray(differences, dtype=float)
    spread = float(np.sqrt((lengths**2).mean()))
    if (y != 0.5).sum() < FEWEST or not spread:
        return None
    x = np.stack([np.ones_like(lengths), np.tanh(lengths / spread)], axis=1)
    pull = np.diag([0.0, _PULL])
    beta, hessian = np.zeros(2), np.eye(2)
    for _ in range(100):
        p = _logistic(x @ beta)
        # Half a row for each side, at equal lengths, keeps b0 finite where one side wins all.
        p0 = _logistic(beta[:1])[0]
        gradient = x.T @ (y - p) - pull @ beta + np.array([0.5 - p0, 0.0])
        hessian = (x * (p * (1 - p))[:, None]).T @ x + pull + np.diag([p0 * (1 - p0), 0.0])
        step = np.linalg.solve(hessian, gradient)
        beta = beta + step * min(1.0, 4.0 / max(1e-12, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-10:
            break
    parts = x * (y - _logistic(x @ beta))[:, None]
    numbers = cluster_numbers(clusters)
    sums = np.stack([np.bincount(numbers, weights=part) for part in parts.T], axis=1)
    count = len(sums)
    inverse = np.linalg.inv(hessian)
    error = float(np.sqrt((inverse @ (sums.T @ sums) @ inverse)[0, 0] * count / max(1, count - 1)))
    half = float(stats.t.ppf(0.5 + confidence / 2, max(1, count - 1))) * error
    ends = _logistic(beta[0] + np.array([0.0, -half, half]))
    return LengthControlled(float(ends[0]), float(ends[1]), float(ends[2]), slope=float(beta[1]))


def _logistic(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(values / 2))
