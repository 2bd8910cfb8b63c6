"""Figures from stored rows: directions, rows that both have, clusters, and Holm's correction."""

from __future__ import annotations

import random

import pytest

from lamina.evaluation.statistics import compare, holm
from lamina.evaluation.table import Metric, column_of, estimate_of, pairs_of
from tests.support.evaluation import stored_row

RIGHT, LOSS, LENGTH = (Metric("t", "m", better) for better in (True, False, None))


def rows_of(ours: list[float], theirs: list[float], **more: object):
    return [
        stored_row(n, {"a": {"m": x}, "b": {"m": y}}, **more) for n, (x, y) in enumerate(zip(ours, theirs, strict=True))
    ]


def test_a_pair_is_what_the_statistics_say() -> None:
    draws = random.Random(1)
    ours, theirs = ([float(draws.random() < share) for _ in range(200)] for share in (0.8, 0.6))
    (pair,) = pairs_of({"t": rows_of(ours, theirs)}, [("a", "b")], [RIGHT])
    found, expected = pair.as_json(), compare(ours, theirs)
    for name in ("difference", "low", "high", "p", "wins", "losses", "ties", "verdict", "smallest"):
        assert found[name] == getattr(expected, name), name
    assert found["verdict"] == "better"
    assert found["wins"] + found["losses"] + found["ties"] == found["rows"] == 200


def test_less_of_a_loss_is_better_and_the_difference_stays_a_minus_b() -> None:
    draws = random.Random(2)
    theirs = [draws.gauss(3, 1) for _ in range(50)]
    ours = [value - 1 + draws.gauss(0, 0.1) for value in theirs]
    (pair,) = pairs_of({"t": rows_of(ours, theirs)}, [("a", "b")], [LOSS])
    found = pair.as_json()
    assert found["verdict"] == "better"
    assert found["difference"] == pytest.approx(-1, abs=0.1)
    assert found["low"] < found["difference"] < found["high"] < 0
    assert (found["wins"], found["losses"]) == (50, 0)
    (turned,) = pairs_of({"t": rows_of(ours, theirs)}, [("b", "a")], [LOSS])
    assert turned.as_json()["verdict"] == "worse"
    assert turned.as_json()["difference"] == pytest.approx(-found["difference"])
    assert not pairs_of({"t": rows_of(ours, theirs)}, [("a", "b")], [LENGTH]), "a length has no better"


def test_a_loss_below_1_is_no_share() -> None:
    rows = rows_of([0.02, 0.05, 0.9, 0.1, 0.3, 0.02], [0.0] * 6)
    share, loss = (estimate_of(rows, "a", Metric("t", "m", False, bounded), 0.95) for bounded in (None, False))
    assert share is not None and loss is not None and share.high is not None and loss.high is not None
    assert share.value == loss.value and share.high < 1 < loss.high


def test_only_rows_that_both_have_are_paired() -> None:
    rows = rows_of([1.0, 0.0, 1.0], [0.0, 0.0, 1.0])
    rows[0]["scores"]["b"] = {}
    rows[1]["scores"].pop("a")
    column = column_of(rows, "a", "b", RIGHT)
    assert (column.a, column.b) == ([1.0], [1.0])
    value = estimate_of(rows, "a", RIGHT, 0.95)
    assert value is not None
    assert value.rows == 2
    assert estimate_of(rows, "nobody", RIGHT, 0.95) is None
    assert pairs_of({"t": rows}, [("a", "nobody")], [RIGHT]) == []


def test_clustered_rows_do_not_count_twice() -> None:
    """Each row copied five times is worth no more than once, if the copies are of one cluster."""
    draws = random.Random(3)
    ours, theirs = ([float(draws.random() < share) for _ in range(30)] for share in (0.9, 0.6))
    alone = pairs_of({"t": rows_of(ours, theirs)}, [("a", "b")], [RIGHT])[0].found
    rows = [
        stored_row(5 * n + copy, {"a": {"m": x}, "b": {"m": y}}, cluster=str(n))
        for n, (x, y) in enumerate(zip(ours, theirs, strict=True))
        for copy in range(5)
    ]
    copied = pairs_of({"t": rows}, [("a", "b")], [RIGHT])[0].found
    plain = pairs_of({"t": [{**row, "cluster": None} for row in rows]}, [("a", "b")], [RIGHT])[0].found
    assert plain.p < 1e-6
    assert copied.p == pytest.approx(alone.p, rel=1.0)
    assert copied.p > 1000 * plain.p


def test_holm_corrects_the_metrics_of_a_pair_and_forgetting_apart() -> None:
    metrics = [Metric("t", f"m{n}", True) for n in range(4)] + [Metric("general", "g", False)]
    draws = random.Random(4)
    names = [metric.name for metric in metrics[:4]]
    rows = [
        stored_row(
            n, {s: {name: float(draws.random() < share) for name in names} for s, share in (("a", 0.7), ("b", 0.5))}
        )
        for n in range(80)
    ]
    general = [stored_row(n, {"a": {"g": draws.random()}, "b": {"g": draws.random()}}) for n in range(30)]
    found = pairs_of({"t": rows, "general": general}, [("a", "b")], metrics)
    assert [pair.found.p for pair in found[:4]] == pytest.approx(holm([pair.p for pair in found[:4]]))
    assert found[4].found.p == found[4].p
    assert any(pair.found.p > pair.p for pair in found)


def test_rows_needed_are_for_the_asked_difference() -> None:
    draws = random.Random(5)
    ours, theirs = ([float(draws.random() < share) for _ in range(100)] for share in (0.62, 0.6))
    rows = {"t": rows_of(ours, theirs)}
    large, small = (pairs_of(rows, [("a", "b")], [RIGHT], power=d)[0].rows_needed for d in (0.2, 0.03))
    assert large is not None and small is not None
    assert 10 < large < 300 < 1500 < small
    same = pairs_of({"t": rows_of([1.0] * 9, [1.0] * 9)}, [("a", "b")], [RIGHT])[0]
    assert same.rows_needed is None
    assert same.found.verdict == "not_enough_rows"
