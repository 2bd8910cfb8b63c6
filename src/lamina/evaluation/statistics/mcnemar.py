"""Yes and no on the same rows: McNemar's exact test (1947), Tango's interval (1998), and the test's power.

Only rows where two subjects differ say which is better: `wins`, where the first alone is right, and `losses`. If
neither is better, each of them is a fair coin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lamina.evaluation.statistics.rows import Array

_HALVINGS = 60


def exact_p(wins: ArrayLike, losses: ArrayLike) -> Array:
    """The two-sided p-value: the binomial probability of a split at least as uneven.

    >>> float(exact_p(9, 1).round(4)), float(exact_p(0, 0))
    (0.0215, 1.0)
    """
    won, lost = np.asarray(wins, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    return np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(won, lost), won + lost, 0.5))


def tango_interval(
    wins: ArrayLike, losses: ArrayLike, rows: int, confidence: float, correction: float = 0.0
) -> tuple[Array, Array]:
    """The differences (wins - losses) / rows that Tango's score test does not reject.

    It holds for few rows, and where nothing or everything differs, in contrast to intervals from a standard error.

    Args:
        wins, losses: Rows that one of both alone has right.
        rows: How many are compared.
        confidence: Of the interval.
        correction: Rows by which the error is taken to be smaller: 0.5 is on the safe side for few rows.
    """
    won, lost = np.broadcast_arrays(np.asarray(wins, dtype=np.float64), np.asarray(losses, dtype=np.float64))
    quantile = float(stats.norm.ppf(0.5 + confidence / 2))
    middle = (won - lost) / rows
    ends = []
    for sign in (-1.0, 1.0):
        inside, outside = middle.copy(), np.full_like(middle, sign)
        for _ in range(_HALVINGS):
            tried = (inside + outside) / 2
            accepted = np.abs(score(won, lost, rows, tried, correction)) <= quantile
            inside, outside = np.where(accepted, tried, inside), np.where(accepted, outside, tried)
        last = np.abs(score(won, lost, rows, np.full_like(middle, sign), correction)) <= quantile
        ends.append(np.where(last, sign, inside))
    return ends[0], ends[1]


def score(wins: Array, losses: Array, rows: int, difference: Array, correction: float = 0.0) -> Array:
    """Tango's statistic for a true difference, standard normal under it; `correction` as in `tango_interval`."""
    b = (2 * rows - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    losing = (np.sqrt(np.maximum(b**2 - 8 * rows * c, 0.0)) - b) / (4 * rows)
    variance = rows * np.maximum(2 * losing + difference * (1 - difference), 0.0)
    error = wins - losses - rows * difference
    error = np.sign(error) * np.maximum(np.abs(error) - correction, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(error) < 1e-12, 0.0, error / np.sqrt(variance))


def exact_power(rows: int, difference: float, discordant: float, alpha: float) -> float:
    """How often the exact test finds a true `difference` above 0 and its direction, summed over all outcomes.

    Args:
        rows: How many are compared.
        difference: True share of wins less that of losses.
        discordant: True share of both.
        alpha: Level of the test.
    """
    discordant = min(1.0, max(discordant, difference))
    if discordant <= 0:
        return 0.0
    spread = 9 * np.sqrt(rows * discordant * (1 - discordant)) + 9
    least, most = max(0, int(rows * discordant - spread)), min(rows, int(rows * discordant + spread) + 1)
    counts = np.arange(least, most + 1)
    worst = stats.binom.ppf(alpha / 2, counts, 0.5)
    worst = np.where(2 * stats.binom.cdf(worst, counts, 0.5) > alpha, worst - 1, worst)
    winning = (discordant + difference) / (2 * discordant)
    found = np.where(worst < 0, 0.0, stats.binom.cdf(worst, counts, 1 - winning))
    return float((stats.binom.pmf(counts, rows, discordant) * found).sum())
