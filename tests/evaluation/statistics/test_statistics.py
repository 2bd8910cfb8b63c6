"""Tests and intervals against their definitions and scipy, and odd, empty, large and mixed cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lamina.errors import ConfigError, DataError
from lamina.evaluation.score import Score
from lamina.evaluation.statistics import (
    compare,
    decide,
    decide_not_worse,
    estimate,
    holm,
    not_worse,
    power_of,
    rows_needed,
    smallest_difference,
    spread_of,
)
from lamina.evaluation.statistics.flips import flip_p
from lamina.evaluation.statistics.mcnemar import exact_p, exact_power, score, tango_interval

finite = st.floats(-1e6, 1e6)
shares = st.floats(0, 1)


def test_wilson_is_the_one_that_is_there_already() -> None:
    for correct, rows in ((0, 10), (5, 10), (81, 263), (10, 10)):
        values = np.arange(rows) < correct
        found = estimate(values)
        assert (found.low, found.high) == pytest.approx(Score(correct, rows).interval)
        assert (found.value, found.rows) == (correct / rows, rows)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 0), (6, 0), (9, 1), (30, 12), (400, 350)])
def test_mcnemar_is_the_binomial_test(wins: int, losses: int) -> None:
    wanted = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert float(exact_p(wins, losses)) == pytest.approx(wanted)
    a = np.repeat([1.0, 0.0, 1.0], [wins, losses, 5])
    b = np.repeat([0.0, 1.0, 1.0], [wins, losses, 5])
    assert compare(a, b).p == pytest.approx(wanted)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_tangos_ends_are_where_his_score_is_the_quantile(wins: int, losses: int, ties: int) -> None:
    rows = wins + losses + ties
    if not rows:
        return
    low, high = (float(end) for end in tango_interval(wins, losses, rows, 0.95))
    assert -1 <= low <= (wins - losses) / rows <= high <= 1
    for end, sign in ((low, 1), (high, -1)):
        if abs(end) < 1:
            found = float(score(np.array(float(wins)), np.array(float(losses)), rows, np.array(end)))
            assert found == pytest.approx(sign * 1.959964, abs=1e-4)
    mirrored = tango_interval(losses, wins, rows, 0.95)
    assert (-float(mirrored[1]), -float(mirrored[0])) == pytest.approx((low, high), abs=1e-9)


def test_the_permutation_test_is_scipys() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, 11)
    wanted = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert float(flip_p(values[None])[0]) == pytest.approx(wanted)
    many = np.random.default_rng(1).normal(0.2, 1, 60)
    wanted = stats.ttest_1samp(many, 0).pvalue
    assert float(flip_p(many[None])[0]) == pytest.approx(wanted, abs=0.02)
    assert float(flip_p(np.full((1, 8), 2.0))[0]) == 2 / 2**8
    assert float(flip_p(np.empty((1, 0)))[0]) == 1.0


def test_holm_is_his() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(DataError, match="row 2 is nan"):
        holm([0.1, float("nan")])


@given(st.lists(st.one_of(finite, shares, st.sampled_from([0.0, 1.0])), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_an_interval_holds_its_value(values: list[float]) -> None:
    found = estimate(values)
    assert found.rows == len(values) and found.value == pytest.approx(np.mean(values), abs=1e-6)
    if found.low is not None and found.high is not None:
        slack = 1e-9 * max(map(abs, values)) + 1e-12
        assert found.low - slack <= found.value <= found.high + slack
        wider = estimate(values, confidence=0.99)
        assert wider.low is None or (wider.low <= found.low + slack and (wider.high or 0) >= found.high - slack)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_swapped_subjects_swap_everything(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([finite, shares, st.sampled_from([0.0, 1.0])]))
    rows = data.draw(st.integers(1, 30))
    a, b = (data.draw(st.lists(kind, min_size=rows, max_size=rows)) for _ in range(2))
    clusters = data.draw(st.none() | st.lists(st.integers(0, 4), min_size=rows, max_size=rows))
    one, other = compare(a, b, clusters), compare(b, a, clusters)
    assert (one.wins, one.losses, one.ties) == (other.losses, other.wins, other.ties)
    assert one.wins + one.losses + one.ties == one.rows == rows
    assert one.p == pytest.approx(other.p) and one.smallest == other.smallest
    assert one.difference == pytest.approx(-other.difference)
    assert {one.verdict, other.verdict} in ({"better", "worse"}, {"not_enough_rows"})
    if one.low is not None and one.high is not None and other.low is not None and other.high is not None:
        scale = max(1.0, *map(abs, a), *map(abs, b))
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-7 * scale)
        assert one.p <= 0.05 or one.low <= 0 <= one.high
    same = compare(a, a, clusters)
    assert (same.difference, same.p, same.ties, same.verdict) == (0.0, 1.0, rows, "not_enough_rows")


def test_clusters_of_one_row_are_no_clusters() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
    assert compare(a, b) == compare(a, b, [f"row {n}" for n in range(40)])
    assert estimate(a) == estimate(a, list(range(40)))
    yes, no = a > 0.5, b > 0.5
    assert compare(yes, no) == compare(yes, no, [(n,) for n in range(40)])


def test_repeated_rows_say_nothing_new() -> None:
    """Every row ten times in a cluster of its own: the interval is that of the rows, not of ten times as many."""
    rng = np.random.default_rng(2)
    values = rng.normal(3, 1, 30)
    once, many = estimate(values), estimate(np.repeat(values, 10), np.repeat(np.arange(30), 10))
    assert (many.low, many.high) == pytest.approx((once.low, once.high))
    right = (values > 3).astype(float)
    many = estimate(np.repeat(right, 10), np.repeat(np.arange(30), 10))
    assert many.high is not None and many.low is not None
    assert many.high - many.low > 0.9 * (estimate(right).high or 0) - 0.9 * (estimate(right).low or 0)


def test_what_rows_cannot_say() -> None:
    assert (estimate([2.5]).low, estimate([2.5]).high) == (None, None)
    assert estimate([3.0] * 5).low is None and estimate([3.0] * 6).low == 3.0
    assert estimate([3.0, 4.0], ["a", "a"]).low is None
    with np.errstate(over="ignore"):
        assert estimate([1e300, -1e300, 5.0]).low is None
    always = estimate([0.7] * 20)
    assert always.low is not None and always.high is not None and always.low < 0.6 and always.high > 0.8
    one = compare([1.0], [0.0])
    assert (one.p, one.verdict, one.smallest) == (1.0, "not_enough_rows", None)
    assert compare([5.0], [2.0]).low is None
    assert compare([5.0] * 20, [2.0] * 20).verdict == "better"
    assert (compare([0.5] * 100, [0.5] * 100).smallest or 0) > 0.01, "that nothing differs says little of other rows"
    equal = compare([0.5] * 100, [0.5] * 100)
    assert equal.low is not None and equal.high is not None and -0.05 < equal.low < 0 < equal.high < 0.05


def test_small_losses_are_no_shares() -> None:
    """A divergence of 0.02 could be 2 on another row; as a share of 1 its interval is too short on that side."""
    rng = np.random.default_rng(0)
    short = wide = 0
    for _ in range(400):
        values = np.minimum(0.02 * np.exp(rng.normal(-0.5, 1, 63)), 1.0)
        as_share, as_number = estimate(values), estimate(values, bounded=False)
        assert as_share.high is not None and as_number.high is not None
        short += as_share.high < 0.02
        wide += as_number.high < 0.02
    assert short > wide and wide <= 0.075 * 400
    ones = estimate([1.0] * 30, bounded=False)
    assert (ones.low, ones.high) == (1.0, 1.0), "a perplexity may be more than 1"
    assert estimate([0.5, 0.7], bounded=True) == estimate([0.5, 0.7])


@pytest.mark.parametrize(
    ("a", "b", "clusters", "words"),
    [
        ([], [], None, "no rows"),
        ([1.0], [1.0, 2.0], None, "a has 1 rows and b 2"),
        ([1.0, float("nan")], [1.0, 2.0], None, "a: row 2 is nan"),
        ([1.0, 2.0], [1.0, float("inf")], None, "b: row 2 is inf"),
        ([1.0, 2.0], [1.0, 2.0], ["x"], "2 rows and 1 clusters"),
    ],
)
def test_what_cannot_be_compared_is_told(a: list[float], b: list[float], clusters: list[str], words: str) -> None:
    for test in (lambda: compare(a, b, clusters), lambda: not_worse(a, b, 0.1, clusters=clusters)):
        with pytest.raises(DataError, match=words):
            test()


def test_a_verdict_is_restated_for_a_level() -> None:
    found = compare(np.repeat([1.0, 0.0], [12, 30]), np.repeat([0.0, 1.0, 0.0], [2, 1, 39]))
    assert found.verdict == "better" and 0.0005 < found.p < 0.05
    assert decide(found, 0.0005).verdict == "not_enough_rows"
    assert decide(replace(found, p=holm([found.p, 0.5, 0.6])[0] * 40), 0.05).verdict == "not_enough_rows"
    passed = not_worse([1.0, 0.0] * 200, [1.0, 0.0] * 200, 0.05)
    assert passed.passed and passed.verdict == "not_worse" and not decide_not_worse(passed, 1e-9).passed


def test_not_worse() -> None:
    rng = np.random.default_rng(0)
    loss = rng.lognormal(0, 0.3, 300)
    alike = not_worse(loss + rng.normal(0, 0.05, 300), loss, 0.02, larger_is_better=False)
    assert alike.passed and alike.verdict == "not_worse" and alike.p < 0.05
    worse = not_worse(loss + 0.1 + rng.normal(0, 0.05, 300), loss, 0.02, larger_is_better=False)
    assert not worse.passed and worse.verdict == "worse" and worse.difference == pytest.approx(-0.1, abs=0.02)
    few = not_worse(loss[:8] + rng.normal(0, 0.2, 8), loss[:8], 0.02, larger_is_better=False)
    assert few.verdict == "not_enough_rows" and few.rows_needed > 300
    assert not_worse(loss, loss, 0.0, larger_is_better=False).passed is False
    assert not_worse(loss, loss, 0.02, larger_is_better=False).passed
    rows = not_worse([1.0] * 10, [1.0] * 10, 0.02)
    assert not rows.passed and not_worse([1.0] * rows.rows_needed, [1.0] * rows.rows_needed, 0.02).passed
    with pytest.raises(ConfigError, match=r"margin: -0\.1 is not 0 or more"):
        not_worse(loss, loss, -0.1)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.floats(0.001, 0.5))
@settings(max_examples=100, deadline=None)
def test_a_wider_margin_is_easier(wins: int, losses: int, ties: int, margin: float) -> None:
    if wins + losses + ties == 0:
        return
    a, b = np.repeat([1.0, 0.0, 1.0], [wins, losses, ties]), np.repeat([0.0, 1.0, 1.0], [wins, losses, ties])
    narrow, wide = not_worse(a, b, margin), not_worse(a, b, margin * 1.5)
    assert narrow.p >= wide.p - 1e-9 and (wide.passed or not narrow.passed)
    assert narrow.passed == (narrow.p <= 0.05) or abs(narrow.p - 0.05) < 1e-6


def test_power_is_a_sum_over_all_outcomes() -> None:
    rows, difference, discordant = 12, 0.3, 0.5
    total = 0.0
    for wins in range(rows + 1):
        for losses in range(rows + 1 - wins):
            shares = [(discordant + difference) / 2, (discordant - difference) / 2, 1 - discordant]
            chance = stats.multinomial.pmf([wins, losses, rows - wins - losses], rows, shares)
            total += chance * (exact_p(wins, losses) <= 0.05 and wins > losses)
    assert exact_power(rows, difference, discordant, 0.05) == pytest.approx(total, abs=1e-9)


def test_rows_needed_and_smallest_difference_are_each_others_inverse() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random(200) < 0.8).astype(float), (rng.random(200) < 0.8).astype(float)
    rows = rows_needed(0.03, a, b)
    assert power_of(rows, 0.03, a, b) >= 0.8 > power_of(int(rows * 0.97), 0.03, a, b)
    assert smallest_difference(rows, spread_of(a, b)) == pytest.approx(0.03, rel=0.02)
    usual = 0.1 * (1.96 + 0.84) ** 2 / 0.03**2  # of the test that is not exact
    assert usual < rows_needed(0.03, discordant=0.1) < 1.1 * usual
    assert rows_needed(-0.1, sd=0.5) == pytest.approx((1.96 + 0.84) ** 2 * 25, rel=0.02)
    assert rows_needed(0.03, a) > rows_needed(0.03, a, np.where(rng.random(200) < 0.1, 1 - a, a))
    assert rows_needed(0.5, discordant=0.1) < 30 and rows_needed(1e-9, sd=1.0) == 10**9
    clusters = np.arange(200) // 10
    assert rows_needed(0.03, np.repeat(a[:20], 10), np.repeat(b[:20], 10), clusters=clusters) > 5 * rows
    assert power_of(5, 0.9, sd=0.1) == 0.0
    for wrong in ({}, {"sd": 1.0, "discordant": 0.2}):
        with pytest.raises(ConfigError, match="one of values_a, sd and discordant"):
            rows_needed(0.1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="0 cannot be shown"):
        rows_needed(0, sd=1.0)


def test_many_rows_take_no_time() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 50_000), rng.normal(0, 1, 50_000)
    found = compare(a, b, np.arange(50_000) // 10)
    assert found.rows == 50_000 and 0 < found.p <= 1
    assert compare(a > 0, b > 0).smallest is not None
