"""Pairs evaluations of different days: the first subjects of stored evaluations, on the rows that all of them saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lamina.evaluation.result import CONFIDENCE, rows_digest, unseen
from lamina.evaluation.scorers import JUDGE
from lamina.evaluation.store import EvaluationError, StoredEvaluation
from lamina.evaluation.table import Metric, estimate_of, pairs_of


def pair_stored(
    evaluations: Sequence[StoredEvaluation], *, against: bool = False, power: float | None = None
) -> dict[str, Any]:
    """Compares the first subject of each evaluation with the others', row by row.

    Rows are paired by their digests. A task counts where every evaluation has it with the same scorers, and one of
    lm-eval's with as many examples in its prompts. Grades count where the same judge gave them, by its digest. Rows
    that training saw, of any of the subjects, do not count.

    Args:
        evaluations: At least two.
        against: Whether all are compared with the last alone.
        power: A difference to say the rows for; by default the one that was seen.

    Returns:
        `subjects`, `pairs` and `rows_digest`, in the form of `lamina eval --json`.

    Raises:
        EvaluationError: They saw no row in common.
    """
    names = [str(stored.path) for stored in evaluations]
    rows = {task: kept for task in _common_tasks(evaluations) if (kept := _common_rows(task, evaluations, names))}
    if not rows:
        said = " and ".join(names)
        raise EvaluationError(f"{said}: saw no row in common. Fix: evaluate on the same task and rows.")
    metrics = [
        metric
        for each in evaluations[0].result["metrics"]
        if (metric := Metric(**each)).task in rows and (metric.name != JUDGE or _same_judge(metric.task, evaluations))
    ]
    chosen = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :] if not against or b == names[-1]]
    pairs = pairs_of(rows, chosen, metrics, confidence=CONFIDENCE, power=power)
    return {
        "subjects": [
            {**stored.subjects[0], "subject": name, "evaluation": stored.digest, "tasks": _tasks(rows, name, metrics)}
            for stored, name in zip(evaluations, names, strict=True)
        ],
        "pairs": [pair.as_json() for pair in pairs],
        "metrics": [asdict(metric) for metric in metrics],
        "leakage": {},
        "rows_digest": rows_digest(rows),
    }


def _common_tasks(evaluations: Sequence[StoredEvaluation]) -> list[str]:
    """Names of tasks that all have, measured in the same way; general text has no scorers."""
    found = []
    for name in evaluations[0].rows:
        scorers = [
            [
                (task["scorers"], task["settings"].get("shots"))
                for task in stored.result["tasks"]
                if task["name"] == name
            ]
            for stored in evaluations
        ]
        if all(name in stored.rows for stored in evaluations) and all(own == scorers[0] for own in scorers):
            found.append(name)
    return found


def _same_judge(task: str, evaluations: Sequence[StoredEvaluation]) -> bool:
    judges = [{each["digest"] for each in e.result["judged"] if each["task"] == task} for e in evaluations]
    return all(own == judges[0] for own in judges)


def _common_rows(task: str, evaluations: Sequence[StoredEvaluation], names: Sequence[str]) -> list[dict[str, Any]]:
    kept = []
    for stored, name in zip(evaluations, names, strict=True):
        own = stored.subjects[0]["subject"]
        kept.append(
            {row["digest"]: _renamed(row, own, name) for row in unseen([_alone(r, own) for r in stored.rows[task]])}
        )
    common = [digest for digest in kept[0] if all(digest in rows for rows in kept)]
    return [
        {**kept[0][digest], "scores": {name: value for rows in kept for name, value in rows[digest]["scores"].items()}}
        for digest in common
    ]


def _alone(row: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """A row as if the subject alone had been evaluated."""
    return {**row, "leaked": {name: kind for name, kind in row["leaked"].items() if name == subject}}


def _renamed(row: Mapping[str, Any], subject: str, name: str) -> dict[str, Any]:
    return {**row, "scores": {name: row["scores"].get(subject, {})}}


def _tasks(rows: Mapping[str, Sequence[Mapping[str, Any]]], name: str, metrics: Sequence[Metric]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for metric in metrics:
        value = estimate_of(rows[metric.task], name, metric, CONFIDENCE)
        if value is not None:
            tasks.setdefault(metric.task, {})[metric.name] = asdict(value)
    return tasks
