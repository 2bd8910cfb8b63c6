"""Each check of a gate, from the rows that both subjects answered: passed, failed, or undecided for want of rows.

A check of numbers is decided by an interval. It passes where the whole interval is on the right side, fails where the
whole interval is on the wrong one, and else says how many rows would decide it. The p-values of all `better` and
`not_worse` checks are corrected together by Holm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamina.config.gate import BetterCheck, FloorCheck, GateConfig, NotWorseCheck
from lamina.config.tasks import GENERAL
from lamina.evaluation.statistics import (
    Difference,
    NonInferiority,
    compare,
    decide,
    decide_not_worse,
    holm,
    not_worse,
    rows_if_equal,
)
from lamina.evaluation.statistics.power import MOST_ROWS
from lamina.evaluation.table import Column, Metric, column_of, estimate_of, needed


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    Attributes:
        name: What was checked.
        passed: Whether it passed; None where the rows do not decide it.
        value, low, high: What was measured, and its interval; for a comparison the candidate's value minus the
            champion's.
        limit: What it was held to.
        rows_needed: Rows that would decide it; None where it is decided, or no number of rows would.
        p: The corrected p-value of a comparison.
        note: What else there is to say, in a sentence.
    """

    name: str
    passed: bool | None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    rows_needed: int | None = None
    p: float | None = None
    note: str = ""

    @property
    def state(self) -> str:
        """`passed`, `failed` or `not_enough_rows`."""
        return {True: "passed", False: "failed", None: "not_enough_rows"}[self.passed]

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        shown = ("name", "passed", "value", "low", "high", "limit", "rows_needed", "p", "note")
        return {**{name: getattr(self, name) for name in shown}, "state": self.state}


@dataclass(frozen=True)
class Evidence:
    """What checks rest on.

    Attributes:
        candidate, champion: Names of the two in the rows.
        rows: Rows of each task that count, by the names that checks call tasks.
        metrics: What each task measures, by the same names.
        titles: The tasks' own names, by the same names.
    """

    candidate: str
    champion: str
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    metrics: Mapping[str, Mapping[str, Metric]]
    titles: Mapping[str, str]

    def metric(self, task: str, name: str) -> Metric:
        """The metric that a check names."""
        return self.metrics[task][name]

    def column(self, task: str, metric: Metric) -> Column:
        """Both subjects' values, larger being better."""
        found = column_of(self.rows[task], self.candidate, self.champion, metric)
        if metric.larger_is_better is False:
            return replace(found, a=[-value for value in found.a], b=[-value for value in found.b])
        return found


def statistical_checks(gate: GateConfig, evidence: Evidence) -> list[Outcome]:
    """The `better` and `not_worse` checks, corrected together, and the floors."""
    confidence = 1 - gate.alpha
    found = [_Compared(check, evidence, confidence) for check in (*gate.better, *gate.not_worse)]
    known = [each for each in found if each.p is not None]
    for each, p in zip(known, holm([each.p for each in known if each.p is not None]), strict=True):
        each.adjusted = p
        each.level = gate.alpha / sum(
            other.p >= each.p for other in known if other.p is not None and each.p is not None
        )
    compared = [each.outcome(gate) for each in found]
    return [*compared, *(_floor(check, evidence, confidence) for check in gate.floors)]


class _Compared:
    """A comparison on its way from a p-value to an outcome.

    Attributes:
        p: Before correction; None without rows.
        adjusted: After it.
        level: What Holm leaves of the gate's level for it.
    """

    def __init__(self, check: BetterCheck | NotWorseCheck, evidence: Evidence, confidence: float) -> None:
        self._check = check
        self._metric = evidence.metric(check.task, check.metric)
        self._column = evidence.column(check.task, self._metric)
        kind = "better" if isinstance(check, BetterCheck) else "not worse"
        self._name = f"{kind}: {evidence.titles[check.task]} {check.metric}"
        self._found: Difference | NonInferiority | None = None
        if self._column.a:
            a, b, clusters = self._column.a, self._column.b, self._column.clusters
            if isinstance(check, BetterCheck):
                self._found = compare(a, b, clusters, confidence)
            else:
                self._found = not_worse(a, b, check.margin, True, clusters, confidence)
        self.p = None if self._found is None else self._found.p
        self.adjusted = 1.0
        self.level = 1 - confidence

    def outcome(self, gate: GateConfig) -> Outcome:
        """The outcome at the gate's level."""
        limit = self._check.margin if isinstance(self._check, NotWorseCheck) else 0.0
        limit = -limit + 0.0 if self._metric.larger_is_better is not False else limit  # never -0.0
        if self._found is None:
            return Outcome(self._name, None, limit=limit, note="no row counts: training saw all, or none has a value")
        if isinstance(self._found, Difference):
            passed, rows_needed = self._better(self._found, gate)
        else:
            passed, rows_needed = self._not_worse(self._found, gate)
        value, low, high = self._found.difference, self._found.low, self._found.high
        if self._metric.larger_is_better is False:
            value, low, high = -value, None if high is None else -high, None if low is None else -low
        rows = len(self._column.a)
        return Outcome(self._name, passed, value, low, high, limit, rows_needed, self.adjusted, f"{rows} rows")

    def _better(self, found: Difference, gate: GateConfig) -> tuple[bool | None, int | None]:
        verdict = decide(replace(found, p=self.adjusted), gate.alpha).verdict
        if verdict == "better":
            return True, None
        if verdict == "worse" or (found.high is not None and found.high <= 0):
            return False, None
        # Where nothing speaks for the candidate, what is asked for are the rows of the most that may still be there.
        gain = found.difference if found.difference > 0 else found.high
        count = None if gain is None else needed(gain, self._column, 1 - self.level, gate.power)
        return None, None if count is None else max(count, found.rows + 1)

    def _not_worse(self, found: NonInferiority, gate: GateConfig) -> tuple[bool | None, int | None]:
        verdict = decide_not_worse(replace(found, p=self.adjusted), gate.alpha).verdict
        if verdict == "not_worse":
            return True, None
        if verdict == "worse":
            return False, None
        column = self._column
        count = rows_if_equal(column.a, column.b, found.margin, column.clusters, self.level, gate.power)
        return None, max(count, found.rows + 1) if count < MOST_ROWS else None


def _floor(check: FloorCheck, evidence: Evidence, confidence: float) -> Outcome:
    at_least = check.at_least is not None
    limit = check.at_least if check.at_least is not None else check.at_most
    name = f"floor: {evidence.titles[check.task]} {check.metric} {'at least' if at_least else 'at most'} {limit:g}"
    found = estimate_of(
        evidence.rows[check.task], evidence.candidate, evidence.metric(check.task, check.metric), confidence
    )
    if found is None or limit is None:
        return Outcome(name, None, limit=limit, note="no row counts: training saw all, or none has a value")
    outcome = Outcome(name, None, found.value, found.low, found.high, limit, note=f"{found.rows} rows")
    if found.low is None or found.high is None:
        return replace(outcome, rows_needed=found.rows * 2)
    near, far = (found.low, found.high) if at_least else (-found.high, -found.low)
    edge = limit if at_least else -limit
    if near >= edge:
        return replace(outcome, passed=True)
    if far < edge:
        return replace(outcome, passed=False)
    reached = found.value >= limit if at_least else found.value <= limit
    end = near if reached else far  # the one that must pass the limit
    return replace(outcome, rows_needed=_rows_for(found.rows, found.value, end if at_least else -end, limit))


def _rows_for(rows: int, value: float, end: float, limit: float) -> int | None:
    """Rows with which an interval, which shrinks with their root, ends at the limit; None where the value is on it."""
    if value == limit:
        return None
    return max(rows + 1, round(rows * ((value - end) / (value - limit)) ** 2))


def general_rows(rows: Sequence[Mapping[str, Any]], base: str | None) -> list[Mapping[str, Any]]:
    """Rows of general text in which the bare base has the KL to itself, 0, as an adapter has its own.

    Args:
        rows: As they are stored.
        base: The bare base's name; None where neither of the two is one.
    """
    if base is None:
        return list(rows)
    found = []
    for row in rows:
        own = dict(row["scores"].get(base, {}))
        if "general_loss" in own:
            own.setdefault("general_kl", 0.0)
        elif row["answers"].get(base):
            own.setdefault("general_same", 1.0)
        found.append({**row, "scores": {**row["scores"], base: own}})
    return found


def verdict_of(outcomes: Sequence[Outcome]) -> str:
    """`promote` if every check passed, `hold` if one failed, else `not_enough_rows`."""
    if any(outcome.passed is False for outcome in outcomes):
        return "hold"
    return "promote" if all(outcome.passed for outcome in outcomes) else "not_enough_rows"


def is_general(task: str) -> bool:
    """Whether a check is of general text."""
    return task == GENERAL
