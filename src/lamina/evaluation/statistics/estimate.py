"""`estimate`: a mean over rows, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lamina.evaluation.statistics.intervals import bounded_interval, mean_interval, yes_no_interval
from lamina.evaluation.statistics.rows import Clusters, Sums, checked, is_yes_no, sums


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval.

    Attributes:
        value: The mean over the rows.
        low, high: Ends of the interval; None where so few rows say nothing about the others: a single number that is
            not between 0 and 1, or fewer than six that are all alike.
        rows: How many.
    """

    value: float
    low: float | None
    high: float | None
    rows: int


def estimate(
    values: ArrayLike,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    bounded: bool | None = None,
) -> Estimate:
    """The mean of values, one a row, with its interval.

    Zeros and ones get Wilson's interval, other values between 0 and 1 Wilson's for their effective rows, all others
    Student's, widened for skew; see `intervals`. With clusters, whole clusters count as draws. No interval is drawn at
    random.

    Args:
        values: A finite number for each row.
        clusters: The name of each row's cluster.
        confidence: How often such intervals hold the true mean.
        seed: Kept for methods that draw; none does.
        bounded: Whether no value can leave 0 to 1, as a share of right answers and in contrast to a small loss; by
            default, whether none of these values does.

    Raises:
        DataError: There are no rows, or a value is not finite.
    """
    found = checked(values)
    of = sums(found, clusters)
    if bounded is False:
        return Estimate(float(found.mean()), *open_interval(of, confidence), len(found))
    if is_yes_no(found):
        low, high = yes_no_interval(of, confidence)
    elif found.min() >= 0 and found.max() <= 1:
        low, high = bounded_interval(of, confidence)
    else:
        return Estimate(float(found.mean()), *open_interval(of, confidence), len(found))
    return Estimate(float(found.mean()), float(low[0]), float(high[0]), len(found))


def open_interval(of: Sums, confidence: float) -> tuple[float | None, float | None]:
    """The interval of one data set of any values; None where there is none.

    Values that are all alike leave no other mean possible to a test that flips signs, once there are enough of them for
    it to reject anything: 2 / 2^n is at most 1 - confidence.
    """
    low, high = (float(end[0]) for end in mean_interval(of, confidence))
    means = of.values[0] / of.sizes
    alike = bool(np.ptp(means) <= 1e-12 * np.abs(means).max())
    if not np.isfinite([low, high]).all() or (alike and 2.0 * 0.5**of.count > 1 - confidence + 1e-12):
        return None, None
    return low, high
