"""Figures of an evaluation: an estimate for each subject and metric, and each pair of subjects row by row.

Everything is computed from rows as they are stored, so that evaluations of other days are paired in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lamina.config.tasks import GENERAL
from lamina.evaluation.statistics import Difference, Estimate, compare, decide, estimate, holm, rows_needed
from lamina.evaluation.statistics.power import MOST_ROWS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """What a task measures.

    Attributes:
        task: The task.
        name: The metric.
        larger_is_better: None where neither is, so that no pair is tested.
        bounded: Whether no value can leave 0 to 1; None where nothing says so.
    """

    task: str
    name: str
    larger_is_better: bool | None
    bounded: bool | None = None


@dataclass(frozen=True)
class Pair:
    """Two subjects on one metric.

    Attributes:
        a, b: Their names.
        metric: The metric.
        found: How much better a is, with the corrected p-value.
        p: The p-value before correction.
        rows_needed: Rows that show a difference: the one that was asked about, or else the one that was seen; None
            where no number of rows would.
    """

    a: str
    b: str
    metric: Metric
    found: Difference
    p: float
    rows_needed: int | None

    def as_json(self) -> dict[str, Any]:
        """As plain data; `difference` is mean(a - b) whichever direction is better."""
        found, flips = self.found, self.metric.larger_is_better is False
        low, high = (_minus(found.high), _minus(found.low)) if flips else (found.low, found.high)
        return {
            "a": self.a,
            "b": self.b,
            "task": self.metric.task,
            "metric": self.metric.name,
            "difference": -found.difference if flips else found.difference,
            "low": low,
            "high": high,
            "p": found.p,
            "p_uncorrected": self.p,
            "wins": found.wins,
            "losses": found.losses,
            "ties": found.ties,
            "rows": found.rows,
            "verdict": found.verdict,
            "smallest": found.smallest,
            "rows_needed": self.rows_needed,
        }


@dataclass(frozen=True)
class Column:
    """Two subjects' values of a metric on the rows that both have.

    Attributes:
        a, b: Values, in the same order.
        clusters: What each row belongs to; None where each stands for itself.
    """

    a: list[float]
    b: list[float]
    clusters: list[Any] | None


def estimate_of(rows: Sequence[Row], subject: str, metric: Metric, confidence: float) -> Estimate | None:
    """The mean of a subject's values; None where it has none."""
    kept = [row for row in rows if _value(row, subject, metric) is not None]
    if not kept:
        return None
    values = [float(_value(row, subject, metric) or 0.0) for row in kept]
    return estimate(values, _clusters(kept), confidence, bounded=metric.bounded)


def column_of(rows: Sequence[Row], a: str, b: str, metric: Metric) -> Column:
    """Both subjects' values on the rows where both have one."""
    kept = [row for row in rows if _value(row, a, metric) is not None and _value(row, b, metric) is not None]
    return Column(
        [float(_value(row, a, metric) or 0.0) for row in kept],
        [float(_value(row, b, metric) or 0.0) for row in kept],
        _clusters(kept),
    )


def pairs_of(
    rows: Mapping[str, Sequence[Row]],
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[Metric],
    *,
    confidence: float = 0.95,
    power: float | None = None,
) -> list[Pair]:
    """Compares pairs of subjects on every metric.

    p-values are corrected by Holm over the metrics of a pair, those of general text apart, since they answer another
    question.

    Args:
        rows: Rows of each task that count.
        pairs: Names of subjects.
        metrics: What was measured.
        confidence: Of intervals; the level of a pair's verdicts is 1 - confidence.
        power: A difference to say the rows for; by default the one that was seen.
    """
    found: list[Pair] = []
    for a, b in pairs:
        for family in ([m for m in metrics if m.task != GENERAL], [m for m in metrics if m.task == GENERAL]):
            tested = [pair for metric in family if (pair := _pair(rows, a, b, metric, confidence, power)) is not None]
            adjusted = holm([pair.p for pair in tested])
            found += [
                replace(pair, found=decide(replace(pair.found, p=p), 1 - confidence))
                for pair, p in zip(tested, adjusted, strict=True)
            ]
    return found


def needed(difference: float, column: Column, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """Rows that show a difference with a probability; None where no number of rows would."""
    if not difference:
        return None
    count = rows_needed(difference, column.a, column.b, clusters=column.clusters, alpha=1 - confidence, power=power)
    return count if count < MOST_ROWS else None


def _pair(
    rows: Mapping[str, Sequence[Row]], a: str, b: str, metric: Metric, confidence: float, power: float | None
) -> Pair | None:
    if metric.larger_is_better is None:
        return None
    column = column_of(rows.get(metric.task, []), a, b, metric)
    if not column.a:
        return None
    ours, theirs = (column.a, column.b) if metric.larger_is_better else (column.b, column.a)
    found = compare(ours, theirs, column.clusters, confidence)
    return Pair(a, b, metric, found, found.p, needed(power or abs(found.difference), column, confidence))


def _value(row: Row, subject: str, metric: Metric) -> float | None:
    return row["scores"].get(subject, {}).get(metric.name)


def _clusters(rows: Sequence[Row]) -> list[Any] | None:
    found = [row.get("cluster") for row in rows]
    return None if any(cluster is None for cluster in found) else found


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
