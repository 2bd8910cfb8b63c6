"""Whether the statistics of evaluations hold what they say: many simulated evaluations of known truth.

For several kinds of scores, and 10 to 400 rows: how often intervals hold the true value, how often an equal candidate
is called better, how often a better one is found beside what was predicted, and how often one that is worse by exactly
the margin passes as not worse. Everything goes through the functions behind `estimate`, `compare` and `not_worse`.

    python benchmarks/statistics_simulation.py [--draws 20000] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from lamina.evaluation.statistics.flips import flip_p
from lamina.evaluation.statistics.intervals import bounded_interval, mean_interval, wilson, yes_no_interval
from lamina.evaluation.statistics.mcnemar import exact_p, tango_interval
from lamina.evaluation.statistics.noninferiority import CORRECTION
from lamina.evaluation.statistics.power import Spread
from lamina.evaluation.statistics.rows import Sums, sums

Array = NDArray[np.float64]
Generator = np.random.Generator

ROWS = (10, 30, 100, 400)
CLUSTER = 5
LEVEL = 0.05


@dataclass(frozen=True)
class Found:
    """What was found in many evaluations with the same truth.

    Attributes:
        low, high: Ends of intervals, (draws,).
        p: Their p-values.
        safe: Lower ends for non-inferiority, (draws,).
        difference: Their means.
    """

    low: Array
    high: Array
    p: Array
    safe: Array
    difference: Array

    def coverage(self, truth: float) -> float:
        """Share of intervals that hold the truth."""
        return float(((self.low <= truth + 1e-12) & (truth - 1e-12 <= self.high)).mean())

    @property
    def better(self) -> float:
        """Share of evaluations whose verdict is `better`."""
        return float(((self.p <= LEVEL) & (self.difference > 0)).mean())


@dataclass(frozen=True)
class Kind:
    """A kind of paired scores.

    Attributes:
        name: What they are.
        draw: From a generator, draws, rows and a true difference to differences (draws, rows).
        spread: How much rows differ, for a true difference and so many rows.
        yes_no: Whether differences are of zeros and ones.
        clustered: Whether five rows belong together.
    """

    name: str
    draw: Callable[[Generator, int, int, float], Array]
    spread: Callable[[], Spread]
    yes_no: bool = False
    clustered: bool = False

    @property
    def rows(self) -> tuple[int, ...]:
        """How many rows are tried; ten are two clusters, which show nothing."""
        return ROWS[1:] if self.clustered else ROWS

    def clusters(self, rows: int) -> NDArray[np.int64] | None:
        """The cluster of each row."""
        return np.arange(rows) // CLUSTER if self.clustered else None

    def evaluate(self, rng: Generator, draws: int, rows: int, truth: float) -> Found:
        """Many evaluations with a true difference."""
        differences = self.draw(rng, draws, rows, truth)
        if self.yes_no and not self.clustered:
            return of_yes_no((differences > 0).sum(1), (differences < 0).sum(1), rows)
        return of_numbers(sums(differences, self.clusters(rows)))


def of_yes_no(wins: NDArray[np.int64], losses: NDArray[np.int64], rows: int) -> Found:
    """What `compare` finds for yes / no, once for each pair of counts."""
    pairs, places = np.unique(np.stack([wins, losses]), axis=1, return_inverse=True)
    low, high = tango_interval(pairs[0], pairs[1], rows, 1 - LEVEL)
    safe, _ = tango_interval(pairs[0], pairs[1], rows, 1 - LEVEL, CORRECTION)
    found = _as_compare(low, high, exact_p(pairs[0], pairs[1]), safe, (pairs[0] - pairs[1]) / rows)
    each = places.ravel()
    return Found(found.low[each], found.high[each], found.p[each], found.safe[each], found.difference[each])


def of_numbers(of: Sums) -> Found:
    """What `compare` finds for numbers, or in clusters."""
    low, high = mean_interval(of, 1 - LEVEL)
    return _as_compare(low, high, flip_p(of.values), low, of.means)


def _as_compare(low: Array, high: Array, p: Array, safe: Array, difference: Array) -> Found:
    undecided = p > LEVEL
    low_0, high_0 = np.where(undecided, np.minimum(low, 0), low), np.where(undecided, np.maximum(high, 0), high)
    return Found(low_0, high_0, p, safe, difference)


def yes_no(discordant: float) -> Callable[[Generator, int, int, float], Array]:
    """Differences of zeros and ones, of which a share differs; where the true difference is larger, only that."""

    def draw(rng: Generator, draws: int, rows: int, truth: float) -> Array:
        share = max(discordant, abs(truth))
        u = rng.random((draws, rows))
        return (u < (share + truth) / 2).astype(float) - (u > 1 - (share - truth) / 2)

    return draw


def clustered_yes_no(rng: Generator, draws: int, rows: int, truth: float) -> Array:
    """A third of all rows differ; the rows of every second cluster all in the same way."""
    own = yes_no(0.3)(rng, draws, rows, truth)
    alike = np.repeat(yes_no(0.3)(rng, draws, rows // CLUSTER, truth), CLUSTER, axis=1)
    chosen = np.repeat(rng.random((draws, rows // CLUSTER)) < 0.5, CLUSTER, axis=1)
    return np.where(chosen, alike, own)


def f1(rng: Generator, draws: int, rows: int, truth: float) -> Array:
    """Differences of scores from 0 to 1, many of them 1, that agree in half of all rows."""
    left, right = (np.where(rng.random((draws, rows)) < 0.5, 1.0, rng.beta(2, 2, (draws, rows))) for _ in range(2))
    return np.where(rng.random((draws, rows)) < 0.5, 0.0, left - right) + truth


def losses(rng: Generator, draws: int, rows: int, truth: float) -> Array:
    """Skewed differences of losses."""
    return (rng.lognormal(0.0, 0.5, (draws, rows)) - np.exp(0.125)) * 0.2 + truth


def clustered_losses(rng: Generator, draws: int, rows: int, truth: float) -> Array:
    """Differences of losses that share a part with their cluster."""
    own = rng.normal(0, 0.1, (draws, rows))
    return own + np.repeat(rng.normal(0, 0.1, (draws, rows // CLUSTER)), CLUSTER, axis=1) + truth


def _measured(
    draw: Callable[[Generator, int, int, float], Array], clustered: bool, discordant: float | None = None
) -> Callable[[], Spread]:
    def spread() -> Spread:
        many = draw(np.random.default_rng(5), 4000, 100, 0.0)
        of = sums(many, np.arange(100) // CLUSTER if clustered else None)
        sd = float(many.std())
        effect = float((of.errors**2).mean() / (sd**2 / 100))
        return Spread(
            sd=None if discordant else sd,
            discordant=discordant,
            design_effect=max(1.0, effect) if clustered else 1.0,
            cluster_rows=CLUSTER if clustered else 1,
        )

    return spread


KINDS = (
    Kind("yes / no, 30% differ", yes_no(0.3), lambda: Spread(discordant=0.3), yes_no=True),
    Kind("yes / no, 5% differ", yes_no(0.05), lambda: Spread(discordant=0.05), yes_no=True),
    Kind(
        "yes / no, in clusters", clustered_yes_no, _measured(clustered_yes_no, True, 0.3), yes_no=True, clustered=True
    ),
    Kind("F1, half are ties", f1, _measured(f1, False)),
    Kind("losses, skewed", losses, _measured(losses, False)),
    Kind("losses, in clusters", clustered_losses, _measured(clustered_losses, True), clustered=True),
)


@dataclass(frozen=True)
class Line:
    """What was measured for a kind of scores and a number of rows; shares of all evaluations.

    Attributes:
        kind: Of scores.
        rows: How many.
        coverage_equal: Of intervals, where both are equal.
        coverage_better: The same where one is better.
        false_better: How often an equal candidate is called better.
        effect: The true difference of a better one.
        power, predicted: How often it is found, and how often that was predicted.
        false_not_worse: How often one that is worse by that difference passes with it as the margin.
    """

    kind: str
    rows: int
    coverage_equal: float
    coverage_better: float
    false_better: float
    effect: float
    power: float
    predicted: float
    false_not_worse: float


def measure(kind: Kind, rows: int, draws: int, seed: int = 0) -> Line:
    """Simulates evaluations of one kind with so many rows, with a difference that is found in about 70% of cases."""
    rng = np.random.default_rng([seed, rows])
    spread = kind.spread()
    effect = _effect(spread, rows)
    equal, better = (kind.evaluate(rng, draws, rows, truth) for truth in (0.0, effect))
    worse = kind.evaluate(rng, draws, rows, -effect)
    return Line(
        kind=kind.name,
        rows=rows,
        coverage_equal=equal.coverage(0.0),
        coverage_better=better.coverage(effect),
        false_better=equal.better,
        effect=effect,
        power=better.better,
        predicted=spread.power(rows, effect),
        false_not_worse=float((worse.safe > -effect).mean()),
    )


def _effect(spread: Spread, rows: int) -> float:
    least, most = 0.0, 0.9 if spread.sd is None else 6 * spread.sd
    for _ in range(30):
        middle = (least + most) / 2
        least, most = (least, middle) if spread.power(rows, middle) >= 0.7 else (middle, most)
    return most


@dataclass(frozen=True)
class Alone:
    """How often the interval of a single subject holds its true mean.

    Attributes:
        kind: Of scores.
        rows: How many.
        coverage: Share of intervals that do; of shares the mean over a range of true shares.
        lowest: For shares, that of the true share where it is lowest.
    """

    kind: str
    rows: int
    coverage: float
    lowest: float | None = None


def share_coverage(rows: int, begin: float, end: float) -> tuple[float, float]:
    """Wilson's coverage over true shares between two, summed over all outcomes: the mean, and the lowest."""
    shares = np.linspace(begin, end, 801)
    counts = np.arange(rows + 1)
    low, high = wilson(counts / rows, float(rows), float(stats.norm.ppf(1 - LEVEL / 2)))
    held = (low[:, None] <= shares) & (shares <= high[:, None])
    found = (stats.binom.pmf(counts[:, None], rows, shares) * held).sum(0)
    return float(found.mean()), float(found.min())


def measure_alone(rows: int, draws: int, seed: int = 0) -> list[Alone]:
    """Measures the intervals of single subjects."""
    rng = np.random.default_rng([seed, rows, 1])
    lines = [
        Alone(f"share from {begin} to {end}", rows, *share_coverage(rows, begin, end))
        for begin, end in ((0.01, 0.1), (0.1, 0.9), (0.9, 0.99))
    ]
    clusters = np.arange(rows) // CLUSTER
    shares = np.repeat(rng.beta(4, 2, (draws, rows // CLUSTER)), CLUSTER, axis=1)
    clustered = (rng.random((draws, rows)) < shares).astype(float)
    scores = np.where(rng.random((draws, rows)) < 0.5, 1.0, rng.beta(2, 2, (draws, rows)))
    high = np.where(rng.random((draws, rows)) < 0.9, 1.0, rng.beta(2, 2, (draws, rows)))
    for name, of, truth, interval in (
        ("yes / no, in clusters", sums(clustered, clusters), 4 / 6, yes_no_interval),
        ("F1 around 0.75", sums(scores, None), 0.75, bounded_interval),
        ("F1 around 0.95", sums(high, None), 0.95, bounded_interval),
        ("losses, skewed", sums(rng.lognormal(0, 0.5, (draws, rows)), None), np.exp(0.125), mean_interval),
        ("lengths, normal", sums(rng.normal(9, 2, (draws, rows)), None), 9.0, mean_interval),
    ):
        low, top = interval(of, 1 - LEVEL)
        lines.append(Alone(name, rows, float(((low <= truth) & (truth <= top)).mean())))
        if of.count == of.rows:
            for rival, other in (("Student", student_interval), ("BCa", bca_interval)):
                low, top = other(of.values)
                lines.append(Alone(f"{name}: {rival}", rows, float(((low <= truth) & (truth <= top)).mean())))
    return lines


def student_interval(values: Array) -> tuple[Array, Array]:
    """Student's interval, for comparison."""
    rows = values.shape[1]
    half = stats.t.ppf(1 - LEVEL / 2, rows - 1) * values.std(axis=1, ddof=1) / np.sqrt(rows)
    return values.mean(1) - half, values.mean(1) + half


def bca_interval(values: Array, resamples: int = 1999) -> tuple[Array, Array]:
    """The BCa bootstrap's interval (Efron 1987), for comparison."""
    rows, means = values.shape[1], values.mean(1)
    counts = np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), resamples).astype(float)
    drawn = np.sort(counts @ values.T / rows, axis=0)
    below = ((drawn < means).sum(0) + (drawn == means).sum(0) / 2) / resamples
    bias = stats.norm.ppf(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    apart = values - means[:, None]
    squares = (apart**2).sum(1)
    skew = (apart**3).sum(1) / (6 * np.where(squares > 0, squares, 1.0) ** 1.5)
    ends = []
    for quantile in stats.norm.ppf((LEVEL / 2, 1 - LEVEL / 2)):
        place = stats.norm.cdf(bias + (bias + quantile) / (1 - skew * (bias + quantile)))
        chosen = np.clip((place * (resamples + 1)).astype(int) - 1, 0, resamples - 1)
        ends.append(drawn[chosen, np.arange(len(means))])
    return ends[0], ends[1]


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=20_000, help="simulated evaluations for each line")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    alone = [line for rows in ROWS for line in measure_alone(rows, arguments.draws)]
    lines = [measure(kind, rows, arguments.draws) for kind in KINDS for rows in kind.rows]
    if arguments.json:
        json.dump({"alone": [asdict(each) for each in alone], "paired": [asdict(each) for each in lines]}, sys.stdout)
        return
    console = Console()
    table = Table("one subject", "rows", "coverage", "lowest", title="95% intervals")
    for each in sorted(alone, key=lambda line: line.kind):
        lowest = "" if each.lowest is None else f"{100 * each.lowest:.1f}"
        table.add_row(each.kind, str(each.rows), f"{100 * each.coverage:.1f}", lowest)
    console.print(table)
    columns = ("two subjects", "rows", "coverage, equal", "coverage, better", "equal called better", "difference")
    table = Table(*columns, "found", "predicted", "worse passes", title="Paired, in percent")
    for line in lines:
        shares = (line.coverage_equal, line.coverage_better, line.false_better)
        more = (line.power, line.predicted, line.false_not_worse)
        texts = [[f"{100 * share:.1f}" for share in some] for some in (shares, more)]
        table.add_row(line.kind, str(line.rows), *texts[0], f"{line.effect:.3f}", *texts[1])
    console.print(table)


if __name__ == "__main__":
    main()
