"""Intervals of means, for many data sets at once.

Two forms cover all cases, and both were chosen by measuring (`benchmarks/statistics_simulation.py`; the figures are in
`docs/statistics.md`):

* Values between 0 and 1 (yes / no, F1, ROUGE, a share of fields): Wilson's interval (1927) for as many *effective rows*
  as give the variance that was found: fewer than the rows where clusters agree with each other, more where scores lie
  closer together than zeros and ones do. It holds near 0 and 1, and for rows that are all alike.
* All other values (losses, lengths, differences): Student's interval, widened where the values are skewed to the limits
  of Hall's transformed t statistic (1992).

At ten rows of skewed losses Student's interval alone covers 92% instead of 95, and the BCa bootstrap 88%; of normal
values BCa covers 90%, and of F1 scores near 1, most of which are alike, 62%.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from lamina.evaluation.statistics.rows import Array, Sums

# Below, a spread is rounding.
_NOTHING = 1e-12


def wilson(shares: Array, rows: Array | float, quantile: float) -> tuple[Array, Array]:
    """Wilson's interval of shares (data sets,) out of `rows`, for a two-sided quantile of the error."""
    square = quantile**2
    middle = (shares + square / (2 * rows)) / (1 + square / rows)
    half = quantile / (1 + square / rows) * np.sqrt(shares * (1 - shares) / rows + square / (4 * rows**2))
    low, high = np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
    return np.where(shares <= 0, 0.0, low), np.where(shares >= 1, 1.0, high)


def share_interval(yes: int, rows: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of yes, for a count that comes without its rows.

    >>> low, high = share_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    low, high = wilson(np.array([yes / rows]), float(rows), _normal(confidence))
    return float(low[0]), float(high[0])


def yes_no_interval(sums: Sums, confidence: float) -> tuple[Array, Array]:
    """The interval of shares of yes among values that are 0 or 1, with or without clusters."""
    if sums.count == sums.rows:
        return wilson(sums.means, float(sums.rows), _normal(confidence))
    return bounded_interval(sums, confidence, float(sums.rows))


def bounded_interval(sums: Sums, confidence: float, most: float = np.inf) -> tuple[Array, Array]:
    """The interval of means of values between 0 and 1.

    Args:
        sums: The values.
        confidence: Of the interval.
        most: Effective rows, at most.
    """
    means = np.clip(sums.means, 0.0, 1.0)
    largest, square = means * (1 - means), sums.errors**2
    known = (largest > _NOTHING) & (square > _NOTHING * largest / sums.rows)
    rows = np.where(known, largest / np.where(known, square, 1.0), sums.count)
    quantile = _student(confidence, sums.count) if sums.count > 1 else _normal(confidence)
    low, high = wilson(means, np.minimum(rows, most), quantile)
    # Where nothing varies, nothing was estimated from what varies.
    low_0, high_0 = wilson(means, float(sums.count), _normal(confidence))
    return np.where(known, low, low_0), np.where(known, high, high_0)


def mean_interval(sums: Sums, confidence: float) -> tuple[Array, Array]:
    """The interval of means of any values; of no width where all clusters are alike, infinite for a single cluster."""
    count, means, errors = sums.count, sums.means, sums.errors
    if count < 2:
        return np.full_like(means, -np.inf), np.full_like(means, np.inf)
    quantile = _student(confidence, count)
    deviations = sums.deviations
    largest = np.abs(deviations).max(axis=1)
    varies = largest > _NOTHING * np.abs(sums.values).max(axis=1)
    scaled = deviations / np.where(varies, largest, 1.0)[:, None]
    skews = np.where(varies, (scaled**3).mean(axis=1) / np.where(varies, (scaled**2).mean(axis=1), 1.0) ** 1.5, 0.0)
    upper = np.maximum(quantile, -_hall(-quantile, skews, count))
    lower = np.maximum(quantile, _hall(quantile, skews, count))
    errors = np.where(varies, errors, 0.0)
    return means - lower * errors, means + upper * errors


def _hall(quantile: float, skews: Array, count: int) -> Array:
    """The t value whose transform, t + g t^2 / 3r + g^2 t^3 / 27r^2 + g / 6r with r^2 = n, is `quantile`."""
    root = np.sqrt(count)
    skewed = np.abs(skews) > 1e-5
    slopes = np.where(skewed, skews, 1.0) / 3
    found = root / slopes * (np.cbrt(1 + 3 * slopes / root * (quantile - skews / (6 * root))) - 1)
    return np.where(skewed, found, quantile)


def _normal(confidence: float) -> float:
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _student(confidence: float, count: int) -> float:
    return float(stats.t.ppf(0.5 + confidence / 2, count - 1))
