"""`not_worse`: whether a subject is worse by less than a margin, which "no difference was found" does not show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lamina.errors import ConfigError, Problem
from lamina.evaluation.statistics.intervals import mean_interval
from lamina.evaluation.statistics.mcnemar import score
from lamina.evaluation.statistics.paired import difference_interval, tango_counts
from lamina.evaluation.statistics.power import ALPHA, POWER, fewest_rows, spread_of
from lamina.evaluation.statistics.rows import Array, Clusters, Sums, checked_pair, sums

# Rows, for yes / no: without it, one that is worse by a large margin passes in 4% of cases at ten rows.
CORRECTION = 0.5


@dataclass(frozen=True)
class NonInferiority:
    """Whether a is not worse than b by as much as a margin.

    Attributes:
        difference: Mean of a - b, or of b - a where smaller is better: below 0 is worse.
        low, high: Ends of its two-sided interval; None where so few rows say nothing about the others.
        p: Twice the one-sided p-value of "a is worse by the margin or more", so that one level serves it and `compare`.
        margin: What is allowed.
        passed: p is at most 1 - confidence, and the whole interval lies above -margin.
        verdict: `not_worse` if passed; `worse` if the whole interval lies below -margin; else `not_enough_rows`.
        rows: How many.
        rows_needed: How many such rows pass with a probability of 80% if a is as good as b.
    """

    difference: float
    low: float | None
    high: float | None
    p: float
    margin: float
    passed: bool
    verdict: Literal["not_worse", "worse", "not_enough_rows"]
    rows: int
    rows_needed: int


def not_worse(
    a: ArrayLike,
    b: ArrayLike,
    margin: float,
    larger_is_better: bool = True,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
) -> NonInferiority:
    """Tests on the safe side whether a is worse than b by less than `margin`.

    The lower end of the two-sided interval must lie above -margin: a subject that is worse by exactly the margin passes
    in at most (1 - confidence) / 2 of cases.

    Args:
        a, b: A finite number for each row, of both in the same order.
        margin: 0 or more; with 0, a must be shown to be better.
        larger_is_better: False for losses and the like.
        clusters: The name of each row's cluster.
        confidence: Of the interval.

    Raises:
        ConfigError: The margin is below 0 or not finite.
        DataError: There are no rows, not as many of both, or a value is not finite.
    """
    if not 0 <= margin < np.inf:
        raise ConfigError(Problem("margin", f"{margin} is not 0 or more", "say how much worse is still good enough"))
    left, right = checked_pair(a, b)
    if not larger_is_better:
        left, right = right, left
    of = sums(left - right, clusters)
    low, high = difference_interval(left, right, of, confidence, CORRECTION)
    alpha = 1 - confidence
    found = NonInferiority(
        difference=float(of.means[0]),
        low=low,
        high=high,
        p=_p(left, right, of, low, margin),
        margin=margin,
        passed=False,
        verdict="not_enough_rows",
        rows=of.rows,
        rows_needed=0 if not margin else rows_if_equal(left, right, margin, clusters, alpha),
    )
    return decide_not_worse(found, alpha)


def rows_if_equal(
    a: ArrayLike,
    b: ArrayLike,
    margin: float,
    clusters: Clusters | None = None,
    alpha: float = ALPHA,
    power: float = POWER,
) -> int:
    """Rows with which "not worse by `margin`" passes with probability `power` if both are equal.

    Args:
        a, b, margin, clusters: As for `not_worse`; the margin is above 0.
        alpha: Level of the test; a Holm-corrected one for the first of several.
        power: Probability of passing.
    """
    spread = spread_of(a, b, clusters=clusters)
    return fewest_rows(lambda rows: spread.power_if_equal(rows, margin, alpha), power)


def decide_not_worse(found: NonInferiority, alpha: float = ALPHA) -> NonInferiority:
    """States anew, for a level such as one that Holm's correction leaves, whether a subject passed."""
    above = found.low is not None and found.low > -found.margin
    passed = above and found.p <= alpha + 1e-12
    worse = found.high is not None and found.high < -found.margin
    return replace(found, passed=passed, verdict="not_worse" if passed else "worse" if worse else "not_enough_rows")


def _p(left: Array, right: Array, of: Sums, low: float | None, margin: float) -> float:
    """Twice the one-sided p-value of a difference of -margin or less: that of the interval's own method."""
    if low is None:
        return 1.0
    counts = tango_counts(left, right, of)
    if counts is not None:
        wins, losses = (np.array(float(count)) for count in counts)
        return min(1.0, 2 * float(stats.norm.sf(score(wins, losses, of.count, np.array(-margin), CORRECTION))))
    if not _is_above(of, 0.0, margin):
        return 1.0
    # The confidence at which the interval's lower end would be -margin. No test of so few signs goes below 2 / 2^n.
    least, most = 0.0, 1.0 - 1e-9
    for _ in range(40):
        middle = (least + most) / 2
        least, most = (middle, most) if _is_above(of, middle, margin) else (least, middle)
    return max(1.0 - least, 2.0 * 0.5**of.count)


def _is_above(of: Sums, confidence: float, margin: float) -> bool:
    """Whether the lower end of the interval of a confidence lies above -margin."""
    return bool(mean_interval(of, confidence)[0][0] > -margin)
