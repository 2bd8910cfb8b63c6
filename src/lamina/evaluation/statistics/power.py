"""How many rows it takes to show a difference, how often so many rows show it, and the smallest one that they show.

For yes / no the power is that of McNemar's exact test, summed over all outcomes; for numbers that of Student's paired
test, which the permutation test reaches. Everything but a difference is taken from what was seen: the share of rows
where two subjects differ, the spread of the differences, how alike the rows of a cluster are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lamina.errors import ConfigError, Problem
from lamina.evaluation.statistics.flips import flip_p
from lamina.evaluation.statistics.mcnemar import exact_power
from lamina.evaluation.statistics.rows import Array, Clusters, are_shares, checked, checked_pair, is_yes_no, sums

POWER = 0.8
ALPHA = 0.05

# More rows than anybody has.
MOST_ROWS = 10**9

# Beyond, the exact sum over outcomes and the normal approximation agree to four digits.
_MOST_EXACT = 20_000

# Fewer differences than that have no p-value below 0.05, whatever they are.
_FEWEST_FLIPS = 6

# From here on the permutation test has the power of Student's.
_FEW_FLIPS = 10


@dataclass(frozen=True)
class Spread:
    """How much paired rows differ.

    Attributes:
        sd: Standard deviation of the differences; None for yes / no.
        discordant: For yes / no, the share of rows where one of two is right.
        share: For yes / no of a single subject, its share of right rows, from which `discordant` follows as if another
            subject's answers were independent of its own: the most rows that it may take.
        design_effect: Rows that are worth one independent row.
        cluster_rows: Rows of a cluster.
    """

    sd: float | None = None
    discordant: float | None = None
    share: float | None = None
    design_effect: float = 1.0
    cluster_rows: float = 1.0

    def power(self, rows: int, difference: float, alpha: float = ALPHA) -> float:
        """How often so many rows show a true difference."""
        distance = abs(difference)
        if self.sd is not None:
            return self._student(rows, distance, self.sd, alpha)
        discordant = self._discordant(distance)
        if rows > _MOST_EXACT or self.cluster_rows > 1:
            return self._student(rows, distance, float(np.sqrt(max(discordant - distance**2, 0.0))), alpha)
        return exact_power(rows, distance, discordant, alpha)

    def power_if_equal(self, rows: int, margin: float, alpha: float = ALPHA) -> float:
        """How often so many rows show that one is not worse by a margin, if both are equal."""
        # Where no row differs, Tango's interval still reaches this far.
        if self.sd is None and rows / self.cluster_rows * margin < stats.norm.ppf(1 - alpha / 2) ** 2 + 0.5:
            return 0.0
        sd = self.sd if self.sd is not None else float(np.sqrt(self._discordant(0.0)))
        return self._student(rows, margin, sd, alpha)

    def _student(self, rows: int, difference: float, sd: float, alpha: float) -> float:
        error = sd * np.sqrt(self.design_effect / rows)
        return student_power(int(rows / self.cluster_rows), difference, float(error), alpha)

    def _discordant(self, difference: float) -> float:
        if self.share is not None:
            other = min(1.0, self.share + difference) if self.share + difference <= 1 else self.share - difference
            return self.share * (1 - other) + other * (1 - self.share)
        return max(self.discordant or 0.0, difference)


def rows_needed(
    difference: float,
    values_a: ArrayLike | None = None,
    values_b: ArrayLike | None = None,
    *,
    sd: float | None = None,
    discordant: float | None = None,
    clusters: Clusters | None = None,
    power: float = POWER,
    alpha: float = ALPHA,
) -> int:
    """Rows with which a true difference is shown with probability `power`.

    Args:
        difference: Between the means of two subjects; its sign does not matter.
        values_a, values_b: One value a row, of both subjects or of one; with one, the other's answers are taken to be
            independent of it, which asks for the most rows.
        sd: Instead of values: standard deviation of the differences.
        discordant: Instead of values, for yes / no: the share of rows where one of both is right.
        clusters: The name of each row's cluster.
        power: Probability of showing it.
        alpha: Level of the test; a Holm-corrected one for the first of several.

    Raises:
        ConfigError: The difference is 0, or not exactly one of values, sd and discordant is given.
    """
    if not difference or not np.isfinite(difference):
        raise ConfigError(Problem("difference", f"{difference} cannot be shown by any number of rows", "use 0.03"))
    spread = spread_of(values_a, values_b, sd=sd, discordant=discordant, clusters=clusters)
    return fewest_rows(lambda rows: spread.power(rows, difference, alpha), power)


def power_of(
    rows: int,
    difference: float,
    values_a: ArrayLike | None = None,
    values_b: ArrayLike | None = None,
    *,
    sd: float | None = None,
    discordant: float | None = None,
    clusters: Clusters | None = None,
    alpha: float = ALPHA,
) -> float:
    """The probability with which `rows` rows show a true difference; the other arguments are those of `rows_needed`."""
    return spread_of(values_a, values_b, sd=sd, discordant=discordant, clusters=clusters).power(rows, difference, alpha)


def smallest_difference(rows: int, spread: Spread, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """The smallest true difference that `rows` rows show with probability `power`; None if they show none."""
    most = 1.0
    if spread.sd is not None:
        if not spread.sd:
            return None if rows < _FEWEST_FLIPS else 0.0
        most = 1e6 * spread.sd
    if spread.power(rows, most, alpha) < power:
        return None
    least = 0.0
    for _ in range(50):
        middle = (least + most) / 2
        least, most = (least, middle) if spread.power(rows, middle, alpha) >= power else (middle, most)
    return most


def spread_of(
    values_a: ArrayLike | None = None,
    values_b: ArrayLike | None = None,
    *,
    sd: float | None = None,
    discordant: float | None = None,
    clusters: Clusters | None = None,
) -> Spread:
    """How much paired rows differ, from values or as given.

    Raises:
        ConfigError: Not exactly one of them is given.
    """
    given = [each for each in (values_a, sd, discordant) if each is not None]
    if len(given) != 1:
        raise ConfigError(Problem("rows_needed", "takes one of values_a, sd and discordant", "give one of them"))
    if values_a is None:
        return Spread(sd, discordant)
    size = 1.0 if clusters is None else len(clusters) / len(set(clusters))
    if values_b is None:
        own = checked(values_a, "values_a")
        effect = design_effect(own, clusters)
        if is_yes_no(own):
            return Spread(share=float(own.mean()), design_effect=effect, cluster_rows=size)
        return Spread(
            sd=float(own.std(ddof=1) * np.sqrt(2)) if len(own) > 1 else 0.0, design_effect=effect, cluster_rows=size
        )
    left, right = checked_pair(values_a, values_b)
    differences = left - right
    effect = design_effect(differences, clusters)
    # Shares of which no row differs are held to Tango's interval, as yes / no is, and not to a spread of 0.
    if (is_yes_no(left) and is_yes_no(right)) or (are_shares(left, right) and not differences.any()):
        return Spread(
            discordant=float(max(np.abs(differences).sum(), 1.0)) / len(left), design_effect=effect, cluster_rows=size
        )
    return Spread(
        sd=float(differences.std(ddof=1)) if len(differences) > 1 else 0.0, design_effect=effect, cluster_rows=size
    )


def design_effect(values: ArrayLike, clusters: Clusters | None) -> float:
    """Rows worth one independent row: the variance of the mean over clusters, by that over rows; at least 1."""
    found = checked(values)
    alone = sums(found, None).errors[0]
    if clusters is None or not alone:
        return 1.0
    return max(1.0, float((sums(found, clusters).errors[0] / alone) ** 2))


def student_power(draws: int, difference: float, error: float, alpha: float) -> float:
    """How often the paired t test finds a true difference above 0 and its direction.

    Args:
        draws: Independent differences: rows, or clusters.
        difference: The true one.
        error: Standard error of its estimate.
        alpha: Level of the test.
    """
    if draws < _FEWEST_FLIPS:
        return 0.0
    if not error:
        return float(difference > 0)
    if draws < _FEW_FLIPS:
        return flips_power(draws, difference / error / np.sqrt(draws), alpha)
    shift, degrees = difference / error, draws - 1
    limit = stats.t.ppf(1 - alpha / 2, degrees)
    if degrees > 1000:  # scipy's noncentral t loses its digits where both numbers are large
        return float(stats.norm.sf(limit - shift))
    return float(np.nan_to_num(stats.nct.sf(limit, degrees, min(shift, limit + 30.0)), nan=1.0))


def flips_power(draws: int, effect: float, alpha: float) -> float:
    """The permutation test's own power for so few differences that Student's is no guide to it.

    Args:
        draws: Independent differences.
        effect: The true one in standard deviations.
        alpha: Level of the test.
    """
    values = _normal_draws(draws) + effect
    return float(((flip_p(values) <= alpha) & (values.sum(axis=1) > 0)).mean())


@functools.cache
def _normal_draws(draws: int) -> Array:
    return np.random.default_rng(0).standard_normal((4000, draws))


def fewest_rows(power_at: Callable[[int], float], power: float) -> int:
    """The fewest rows with that power, at most `MOST_ROWS`."""
    least, most = 1, 2
    while power_at(most) < power:
        if most >= MOST_ROWS:
            return MOST_ROWS
        least, most = most, most * 2
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if power_at(middle) >= power else (middle, most)
    return most
