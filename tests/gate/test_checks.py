"""Checks of a gate from rows: who passes, who fails, and who is told how many rows it takes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lamina.config.gate import GateConfig
from lamina.config.sections import read_section
from lamina.errors import ConfigError
from lamina.evaluation.table import Metric
from lamina.gate.checks import Evidence, Outcome, general_rows, statistical_checks, verdict_of
from lamina.gate.facts import fact_checks
from tests.support.evaluation import stored_row

METRICS = {
    "t": {"right": Metric("t", "right", True), "cost": Metric("t", "cost", False)},
    "general": {"general_loss": Metric("general", "general_loss", False)},
}
SUBJECT: dict[str, Any] = {
    "certificate": True,
    "license": "apache-2.0",
    "sizes": {"base_bytes": 2**30, "adapter_bytes": 5_000_000, "adapter_memory_bytes": 0},
}


def gate(**settings: Any) -> GateConfig:
    return read_section(GateConfig, settings)


def evidence(ours: list[float], theirs: list[float], metric: str = "right", task: str = "t") -> Evidence:
    rows = [
        stored_row(n, {"candidate": {metric: x}, "champion": {metric: y}})
        for n, (x, y) in enumerate(zip(ours, theirs, strict=True))
    ]
    found = {"t": [], "general": [], task: rows}
    return Evidence("candidate", "champion", found, METRICS, {"t": "t", "general": "general"})


def draw(share: float, rows: int, seed: int) -> list[float]:
    source = random.Random(f"{share} {seed}")
    return [float(source.random() < share) for _ in range(rows)]


BETTER = [{"task": "t", "metric": "right"}]


@pytest.mark.parametrize(
    ("ours", "theirs", "rows", "state"),
    [
        (0.9, 0.5, 100, "passed"),
        (0.5, 0.9, 100, "failed"),
        (0.72, 0.7, 100, "not_enough_rows"),
        (0.9, 0.5, 6, "not_enough_rows"),
        (0.75, 0.65, 1500, "passed"),
    ],
)
def test_better_is_passed_failed_or_undecided(ours: float, theirs: float, rows: int, state: str) -> None:
    (found,) = statistical_checks(gate(better=BETTER), evidence(draw(ours, rows, 1), draw(theirs, rows, 2)))
    assert found.state == state
    assert (found.rows_needed is not None) == (state == "not_enough_rows")
    assert found.rows_needed is None or found.rows_needed > rows
    assert found.low is not None and found.value is not None and found.high is not None
    assert found.low <= found.value <= found.high


def test_the_rows_that_are_asked_for_decide_it() -> None:
    """With as many rows of the same kind, a candidate that is better by as much passes in most cases."""
    ours, theirs = [1.0] * 9 + [0.0] * 4 + [1.0] * 47, [0.0] * 9 + [1.0] * 4 + [1.0] * 47
    (found,) = statistical_checks(gate(better=BETTER), evidence(ours, theirs))
    assert found.value is not None and found.value > 0 and found.rows_needed is not None
    passed = 0
    for seed in range(40):
        source = random.Random(seed)
        chosen = [source.randrange(60) for _ in range(found.rows_needed)]
        again = evidence([ours[n] for n in chosen], [theirs[n] for n in chosen])
        passed += statistical_checks(gate(better=BETTER), again)[0].passed is True
    assert 24 <= passed <= 40, "its power is 80%"


def test_a_candidate_as_good_as_the_champion_seldom_passes() -> None:
    passed = 0
    for seed in range(150):
        ours, theirs = draw(0.7, 60, 2 * seed), draw(0.7, 60, 2 * seed + 1)
        passed += statistical_checks(gate(better=BETTER), evidence(ours, theirs))[0].passed is True
    assert passed <= 7, "at most 5%"


def test_the_same_answers_are_no_reason_to_promote() -> None:
    same = draw(0.7, 50, 1)
    (found,) = statistical_checks(gate(better=BETTER), evidence(same, same))
    assert (found.passed, found.value) == (None, 0.0)
    assert found.rows_needed is not None and found.rows_needed > 50


def test_less_of_a_cost_is_better() -> None:
    source = random.Random(1)
    theirs = [source.gauss(10, 2) for _ in range(60)]
    ours = [value - 1 for value in theirs]
    check = [{"task": "t", "metric": "cost"}]
    (found,) = statistical_checks(gate(better=check), evidence(ours, theirs, "cost"))
    assert (found.state, round(found.value or 0, 6)) == ("passed", -1.0)
    (found,) = statistical_checks(gate(better=check), evidence(theirs, ours, "cost"))
    assert found.state == "failed"


@pytest.mark.parametrize(
    ("worse", "rows", "state"), [(0.0, 65, "passed"), (0.1, 65, "failed"), (0.0, 4, "not_enough_rows")]
)
def test_not_worse_needs_the_whole_interval_inside_the_margin(worse: float, rows: int, state: str) -> None:
    source = random.Random(2)
    theirs = [source.gauss(3, 1) for _ in range(rows)]
    ours = [value + worse + source.gauss(0, 0.03) for value in theirs]
    check = [{"metric": "general_loss", "margin": 0.02}]
    (found,) = statistical_checks(gate(not_worse=check), evidence(ours, theirs, "general_loss", "general"))
    assert found.state == state
    assert found.limit == 0.02


def test_several_checks_are_corrected_together() -> None:
    ours, theirs = draw(0.8, 100, 11), draw(0.68, 100, 12)
    alone = statistical_checks(gate(better=BETTER), evidence(ours, theirs))[0]
    together = statistical_checks(
        gate(better=BETTER, not_worse=[{"task": "t", "metric": "right", "margin": 0.001}] * 3), evidence(ours, theirs)
    )[0]
    assert alone.p is not None and together.p is not None
    assert together.p > alone.p


def test_the_rows_that_are_asked_for_are_those_of_the_level_that_holm_leaves() -> None:
    rows = [
        stored_row(
            n, {name: {"right": right, "cost": 1.0 + n % 7} for name, right in (("candidate", x), ("champion", y))}
        )
        for n, (x, y) in enumerate([(1.0, 0.0)] * 12 + [(0.0, 1.0)] * 4 + [(1.0, 1.0)] * 84)
    ]
    seen = Evidence("candidate", "champion", {"t": rows}, METRICS, {"t": "t"})
    alone = statistical_checks(gate(better=BETTER), seen)[0]
    half = statistical_checks(gate(better=BETTER, alpha=0.025), seen)[0]
    first, last = statistical_checks(gate(better=[*BETTER, {"task": "t", "metric": "cost"}]), seen)
    assert alone.state == first.state == "not_enough_rows"
    assert (first.p or 0) < (last.p or 0), "so it is held to half the level, and the other to all of it"
    assert first.rows_needed == half.rows_needed
    assert (first.rows_needed or 0) > (alone.rows_needed or 0)


def test_the_power_of_the_gate_is_that_of_all_its_checks() -> None:
    source = random.Random(2)
    theirs = [source.gauss(3, 1) for _ in range(8)]
    ours = [value + (0.2 if number % 2 else -0.2) for number, value in enumerate(theirs)]
    check = [{"metric": "general_loss", "margin": 0.02}]
    rows = evidence(ours, theirs, "general_loss", "general")
    outcomes = [statistical_checks(gate(not_worse=check, power=power), rows)[0] for power in (0.5, 0.8, 0.95)]
    found = [outcome.rows_needed or 0 for outcome in outcomes]
    assert all(found) and found == sorted(found) and len(set(found)) == 3


def test_scores_of_which_no_row_differs_ask_for_rows_that_suffice() -> None:
    check = [{"task": "t", "metric": "right", "margin": 0.02}]
    (few,) = statistical_checks(gate(not_worse=check), evidence([0.3] * 60, [0.3] * 60))
    assert few.state == "not_enough_rows" and few.rows_needed is not None
    (enough,) = statistical_checks(gate(not_worse=check), evidence([0.3] * few.rows_needed, [0.3] * few.rows_needed))
    assert enough.state == "passed"


def test_a_floor_that_is_missed_asks_for_rows_that_show_it() -> None:
    """Of a skewed cost the interval is longer above its mean, which is the end that must pass the limit."""
    source = random.Random(3)
    costs = [source.lognormvariate(0, 1.2) for _ in range(40)]
    floor = [{"task": "t", "metric": "cost", "at_least": 2.2}]
    (found,) = statistical_checks(gate(floors=floor), evidence(costs, costs, "cost"))
    assert found.state == "not_enough_rows" and found.value is not None and found.high is not None
    assert found.value < 2.2 < found.high and found.low is not None
    assert found.rows_needed == round(40 * ((found.value - found.high) / (found.value - 2.2)) ** 2)


@pytest.mark.parametrize(
    ("limit", "state"),
    [
        ({"at_least": 0.5}, "passed"),
        ({"at_least": 0.95}, "failed"),
        ({"at_least": 0.78}, "not_enough_rows"),
        ({"at_most": 0.95}, "passed"),
        ({"at_most": 0.5}, "failed"),
    ],
)
def test_floors_hold_the_interval_to_a_value(limit: dict[str, float], state: str) -> None:
    found = statistical_checks(
        gate(floors=[{"task": "t", "metric": "right", **limit}]), evidence([1.0] * 80 + [0.0] * 20, [0.0] * 100)
    )[0]
    assert found.state == state
    assert (found.rows_needed or 0) > 100 or state != "not_enough_rows"


def test_without_rows_nothing_is_decided() -> None:
    checks = gate(better=BETTER, floors=[{"task": "t", "metric": "right", "at_least": 0.5}])
    assert [found.passed for found in statistical_checks(checks, evidence([], []))] == [None, None]


@pytest.mark.parametrize(
    ("passed", "verdict"),
    [
        ([True, True], "promote"),
        ([True, None], "not_enough_rows"),
        ([None, False], "hold"),
        ([True, False], "hold"),
        ([], "promote"),
    ],
)
def test_one_failure_holds_and_one_undecided_asks(passed: list[bool | None], verdict: str) -> None:
    assert verdict_of([Outcome("x", each) for each in passed]) == verdict


def test_facts_are_held_to_the_gate() -> None:
    strict = gate(
        better=BETTER,
        certificate="required",
        leakage="none",
        license=["Apache-2.0"],
        limits={"latency_seconds": 0.5, "adapter_mb": 6, "memory_gib": 1},
    )
    clean = {"exact": 0, "near": 0, "unknown": ""}
    assert all(found.passed for found in fact_checks(strict, SUBJECT, [clean], 0.4))
    worse: list[tuple[dict[str, Any], dict[str, Any], float, str]] = [
        ({"certificate": False}, {}, 0.4, "certificate"),
        ({"certificate": None}, {}, 0.4, "certificate"),
        ({"license": None}, {}, 0.4, "license"),
        ({"license": "mit"}, {}, 0.4, "license"),
        ({"sizes": {"base_bytes": 2**31}}, {}, 0.4, "memory"),
        ({"sizes": {"adapter_bytes": 7_000_000}}, {}, 0.4, "adapter in MB"),
        ({}, {"exact": 1}, 0.4, "leakage"),
        ({}, {"near": 1}, 0.4, "leakage"),
        ({}, {"unknown": "moved"}, 0.4, "leakage"),
        ({}, {}, 0.6, "latency"),
    ]
    for subject, leakage, latency, name in worse:
        found = list(fact_checks(strict, {**SUBJECT, **subject}, [{**clean, **leakage}], latency))
        assert [each.name for each in found if not each.passed] == [n for n in (e.name for e in found) if name in n]
    exact_only = gate(better=BETTER, leakage="no_exact")
    assert [each.passed for each in fact_checks(exact_only, SUBJECT, [{**clean, "near": 3}], None)] == [True]
    assert not list(fact_checks(gate(better=BETTER), SUBJECT, [], None)), "what the gate does not name is not checked"


def test_the_bare_base_has_no_distance_to_itself() -> None:
    rows = [stored_row(1, {"champion": {"general_loss": 2.0}}), stored_row(2, {}, answers={"champion": {"text": "x"}})]
    filled = general_rows(rows, "champion")
    assert [row["scores"]["champion"].get("general_kl") for row in filled] == [0.0, None]
    assert filled[1]["scores"]["champion"] == {"general_same": 1.0}
    assert general_rows(rows, None) == rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "checks nothing"),
        ({"better": [{"task": "t"}]}, "better.0.metric: is required"),
        ({"better": BETTER, "leakge": "none"}, "Did you mean 'leakage'"),
        ({"better": BETTER, "limits": {"memry_gib": 1}}, "Did you mean 'memory_gib'"),
        ({"not_worse": [{"metric": "general_loss", "margin": 0.0}]}, "not_worse.0.margin"),
        ({"not_worse": [{"metric": "general_loss", "margin": "0.1"}]}, "not_worse.0.margin"),
        ({"floors": [{"metric": "x"}]}, "at_least or at_most"),
        ({"better": BETTER, "alpha": 1.5}, "alpha"),
    ],
)
def test_settings_are_strict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        gate(**settings)
