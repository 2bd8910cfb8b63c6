"""Intervals, tests and powers hold what they say, in simulated evaluations of known truth.

The same simulation with many more draws is `benchmarks/statistics_simulation.py`. Bounds allow for what so few draws
vary by: four standard errors.
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.statistics_simulation import KINDS, ROWS, Kind, measure, measure_alone, share_coverage

from lamina.evaluation.statistics import compare, estimate, not_worse

DRAWS = 1500
CASES = [(kind, rows) for kind in KINDS for rows in kind.rows if rows <= 100]


def noise(share: float) -> float:
    return 4 * float(np.sqrt(share * (1 - share) / DRAWS))


@pytest.mark.parametrize(("kind", "rows"), CASES, ids=[f"{kind.name}-{rows}" for kind, rows in CASES])
def test_paired(kind: Kind, rows: int) -> None:
    line = measure(kind, rows, DRAWS)
    # Where both are equal the interval follows the exact test, which for few rows rejects less than it may.
    assert line.coverage_equal >= 0.94 - noise(0.05)
    few = rows / (5 if kind.clustered else 1) <= 10
    assert 0.94 - noise(0.05) <= line.coverage_better <= (0.985 if few else 0.96) + noise(0.05)
    assert line.false_better <= 0.025 + noise(0.025)
    assert line.false_not_worse <= 0.025 + noise(0.025)
    skewed = kind.name == "losses, skewed" and rows < 100
    coarse = kind.yes_no and kind.clustered and few  # so few sums of zeros and ones tie all the time
    assert coarse or line.power >= line.predicted - 0.03 - noise(0.3)
    assert skewed or line.power <= line.predicted + 0.03 + noise(0.3)


@pytest.mark.parametrize("rows", ROWS)
def test_shares_near_the_ends_and_in_the_middle(rows: int) -> None:
    for begin, end in ((0.01, 0.1), (0.1, 0.9), (0.9, 0.99)):
        mean, lowest = share_coverage(rows, begin, end)
        assert 0.94 <= mean <= 0.96 and lowest > 0.83


@pytest.mark.parametrize("rows", [10, 30, 100])
def test_one_subject(rows: int) -> None:
    for line in measure_alone(rows, DRAWS):
        if ":" in line.kind or line.kind.startswith("share"):
            continue
        few = rows == 10 or ("clusters" in line.kind and rows == 30)
        assert 0.94 - noise(0.05) <= line.coverage <= (1.0 if few else 0.97 + noise(0.05)), line


def test_rows_in_clusters_taken_for_independent_ones_would_be_called_better_far_too_often() -> None:
    """What the cluster test is for: the same rows, with and without their clusters."""
    rng = np.random.default_rng(3)
    clusters = np.arange(100) // 5
    kind = next(kind for kind in KINDS if kind.name == "losses, in clusters")
    rows = kind.draw(rng, 300, 100, 0.0)
    apart = [compare(row, np.zeros(100)).verdict for row in rows[:150]]
    together = [compare(row, np.zeros(100), clusters).verdict for row in rows[:150]]
    assert sum(verdict != "not_enough_rows" for verdict in apart) > 0.15 * 150
    assert sum(verdict != "not_enough_rows" for verdict in together) <= 0.05 * 150 + 4 * np.sqrt(0.05 * 0.95 * 150)


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_the_simulation_is_of_the_public_functions(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    for rows in (30, 60):
        truth = 0.1
        drawn = kind.draw(np.random.default_rng(rows), 5, rows, truth)
        found = kind.evaluate(np.random.default_rng(rows), 5, rows, truth)
        for number, differences in enumerate(drawn):
            base = (differences < 0).astype(float) if kind.yes_no else np.full(rows, 5.0 + rng.random())
            single = compare(base + differences, base, kind.clusters(rows))
            ends = (found.low[number], found.high[number], found.difference[number])
            ends = tuple(np.clip(ends, -1, 1)) if kind.yes_no else ends
            assert (single.low, single.high, single.difference) == pytest.approx(ends, abs=1e-9)
            assert single.p == pytest.approx(found.p[number], abs=0.02)
            safe = not_worse(base + differences, base, 0.3, clusters=kind.clusters(rows))
            assert safe.low == pytest.approx(
                max(found.safe[number], -1) if kind.yes_no else found.safe[number], abs=1e-9
            )
            assert safe.passed == (found.safe[number] > -0.3)
    assert estimate([3.0, 4.0, 8.0]).low is not None
