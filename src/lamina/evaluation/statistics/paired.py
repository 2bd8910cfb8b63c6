"""`compare`: two subjects on the same rows. Which is better, by how much, and what so many rows could have shown."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lamina.evaluation.statistics.estimate import open_interval
from lamina.evaluation.statistics.flips import flip_p
from lamina.evaluation.statistics.mcnemar import exact_p, tango_interval
from lamina.evaluation.statistics.power import smallest_difference, spread_of
from lamina.evaluation.statistics.rows import Array, Clusters, Sums, are_shares, checked_pair, is_yes_no, sums

Verdict = Literal["better", "worse", "not_enough_rows"]


@dataclass(frozen=True)
class Difference:
    """How much better a is than b on the same rows.

    Attributes:
        difference: Mean of a - b.
        low, high: Ends of its interval; None where so few rows say nothing about the others, as in `Estimate`.
        p: Two-sided p-value of "neither is better".
        wins, losses, ties: Rows where a > b, a < b, a = b.
        rows: All of them.
        verdict: `better` or `worse` if p is at most the level, else `not_enough_rows`.
        smallest: The smallest true difference that so many such rows show with a probability of 80%; None if they can
            show none.
    """

    difference: float
    low: float | None
    high: float | None
    p: float
    wins: int
    losses: int
    ties: int
    rows: int
    verdict: Verdict
    smallest: float | None


def compare(
    a: ArrayLike, b: ArrayLike, clusters: Clusters | None = None, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Compares two subjects row by row; a larger value is better.

    Zeros and ones: McNemar's exact test and Tango's interval. Numbers, or rows in clusters: the paired permutation test
    and Student's interval, widened for skew. An interval holds 0 wherever the test does not reject it.

    Args:
        a, b: A finite number for each row, of both in the same order. For a score where smaller is better, swap them.
        clusters: The name of each row's cluster.
        confidence: Of the interval; the level of the verdict is 1 - confidence.
        seed: Of random sign flips.

    Raises:
        DataError: There are no rows, not as many of both, or a value is not finite.
    """
    left, right = checked_pair(a, b)
    differences = left - right
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    of = sums(differences, clusters)
    clustered = of.count < of.rows
    if is_yes_no(left) and is_yes_no(right) and not clustered:
        p = float(exact_p(wins, losses))
    else:
        p = float(flip_p(of.values[:, of.values[0] != 0], seed)[0])
    low, high = difference_interval(left, right, of, confidence)
    if p > 1 - confidence and low is not None and high is not None:
        low, high = min(low, 0.0), max(high, 0.0)
    found = Difference(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=p,
        wins=wins,
        losses=losses,
        ties=len(left) - wins - losses,
        rows=len(left),
        verdict="not_enough_rows",
        smallest=smallest_difference(len(left), spread_of(left, right, clusters=clusters), alpha=1 - confidence),
    )
    return decide(found, 1 - confidence)


def decide(difference: Difference, alpha: float) -> Difference:
    """States the verdict anew for a level, such as one that Holm's correction leaves.

    Where several are corrected together, `decide(replace(difference, p=adjusted), 0.05)` is the same.
    """
    if difference.p > alpha + 1e-12 or difference.difference == 0:
        return replace(difference, verdict="not_enough_rows")
    return replace(difference, verdict="better" if difference.difference > 0 else "worse")


def difference_interval(
    left: Array, right: Array, of: Sums, confidence: float, correction: float = 0.0
) -> tuple[float | None, float | None]:
    """The interval of the mean of left - right, whose sums are `of`; `correction` as in `tango_interval`."""
    counts = tango_counts(left, right, of)
    if counts is not None:
        low, high = tango_interval(*counts, of.count, confidence, correction)
        return float(low), float(high)
    low, high = open_interval(of, confidence)
    if are_shares(left, right) and low is not None and high is not None:
        return max(low, -1.0), min(high, 1.0)
    return low, high


def tango_counts(left: Array, right: Array, of: Sums) -> tuple[int, int] | None:
    """Wins and losses out of `of.count`, where Tango's score is the method; None where it is not.

    It is for zeros and ones without clusters, and for any values between 0 and 1 where no row differs.
    """
    yes_no = is_yes_no(left) and is_yes_no(right)
    if (yes_no and of.count == of.rows) or (are_shares(left, right) and not np.any(left != right)):
        return int((left > right).sum()), int((left < right).sum())
    return None
