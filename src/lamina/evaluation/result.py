"""The rows and the figures of an evaluation as they are stored, from what was gathered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lamina.config.tasks import GENERAL
from lamina.evaluation.benchmarks.run import Benchmark
from lamina.evaluation.entries import Entry
from lamina.evaluation.gather import Gathered, Prepared
from lamina.evaluation.general.measure import KL, LOSS, SAME
from lamina.evaluation.scorers import JUDGE
from lamina.evaluation.table import Metric, estimate_of, pairs_of
from lamina.evaluation.tasks import TaskRow
from lamina.runs import timestamp
from lamina.version import __version__

CONFIDENCE = 0.95

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def stored_rows(
    entries: Sequence[Entry], prepared: Sequence[Prepared], found: Gathered
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task as they are stored, and those of general text."""
    rows = {
        each.task.name: [_stored(each, row, place, entries, found) for place, row in enumerate(each.rows)]
        for each in prepared
    }
    rows |= {each.task: _benchmark_rows(each.task, found) for each in _first_benchmarks(found)}
    general = _general_rows(entries, found)
    return {**rows, GENERAL: general} if general else rows


def unseen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows whose prompts no subject's training saw."""
    return [row for row in rows if "exact" not in row.get("leaked", {}).values()]


def metrics_of(prepared: Sequence[Prepared]) -> list[Metric]:
    """What is measured: the scorers of the tasks, and forgetting."""
    of_tasks = [
        Metric(each.task.name, scorer.name, scorer.larger_is_better, scorer.bounded)
        for each in prepared
        for scorer in each.scorers
    ]
    judged = [each.task for each in prepared if (judge := each.task.config.judging) is not None and judge.rubric]
    of_tasks += [Metric(task.name, JUDGE, True, bounded=False) for task in judged]
    losses = [Metric(GENERAL, name, False, bounded=False) for name in (LOSS, KL)]
    return [*of_tasks, *losses, Metric(GENERAL, SAME, True, bounded=True)]


def rows_digest(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """SHA-256 of the digests of all rows, by task."""
    text = "\n".join(f"{name} {row['digest']}" for name in sorted(rows) for row in rows[name])
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _stored(prepared: Prepared, row: TaskRow, place: int, entries: Sequence[Entry], found: Gathered) -> dict[str, Any]:
    task = prepared.task.name
    names = [entry.name for entry in entries]
    leaks = {name: leak.kind for name in names if (of := found.leaks.get((task, name))) and (leak := of[place])}
    return {
        "row": row.number,
        "place": row.place,
        "digest": row.digest,
        "question": row.question,
        "reference": row.reference,
        "columns": {key: value for key, value in row.columns.items() if _is_label(value)},
        "cluster": row.cluster,
        "leaked": leaks,
        "answers": {name: asdict(of[place]) for name in names if (of := found.answers.get((task, name)))},
        "scores": {
            name: {metric: values[place] for metric, values in found.scores.get((task, name), {}).items()}
            for name in names
        },
    }


def _first_benchmarks(found: Gathered) -> list[Benchmark]:
    """lm-eval's tasks, as the first subject was asked them."""
    return next(iter(found.benchmarks.values()), [])


def _benchmark_metrics(found: Gathered) -> list[Metric]:
    return [
        Metric(each.task, name, each.larger_is_better[name])
        for each in _first_benchmarks(found)
        for name in each.larger_is_better
        if any(name in row.scores for row in each.rows)
    ]


def _benchmark_rows(task: str, found: Gathered) -> list[dict[str, Any]]:
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for name, benchmarks in found.benchmarks.items():
        for benchmark in benchmarks:
            if benchmark.task != task:
                continue
            for own in benchmark.rows:
                empty = {"row": own.number + 1, "digest": own.digest, "question": "", "reference": own.target}
                empty |= {"columns": {}, "cluster": None, "leaked": {}, "answers": {}, "scores": {}}
                row = rows.setdefault((own.number, own.digest), empty)
                row["answers"][name] = {"text": own.answer}
                row["scores"][name] = dict(own.scores)
    return list(rows.values())


def _benchmark_task(benchmark: Benchmark, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": benchmark.task,
        "digest": benchmark.digest,
        "rows": len(rows),
        "counted": len(rows),
        "rows_digest": rows_digest({benchmark.task: rows}),
        "scorers": dict.fromkeys(benchmark.larger_is_better, f"lm-eval {benchmark.version}"),
        "settings": {"shots": benchmark.shots, "library": "lm-eval"},
    }


def _general_rows(entries: Sequence[Entry], found: Gathered) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}

    def row_of(digest: str, question: str) -> dict[str, Any]:
        empty = {"row": len(rows) + 1, "digest": digest, "question": question, "reference": "", "columns": {}}
        return rows.setdefault(digest, {**empty, "cluster": None, "leaked": {}, "answers": {}, "scores": {}})

    for entry in entries:
        for place, digest in enumerate(found.general_rows.get(entry.name, [])):
            scores = row_of(digest, found.texts[digest])["scores"].setdefault(entry.name, {})
            scores |= {metric: values[place] for metric, values in found.general[entry.name].items()}
    for entry in entries:
        answers = found.answers.get((GENERAL, entry.name), [])
        same = found.scores.get((GENERAL, entry.name), {}).get(SAME)
        for place, (prompt, answer) in enumerate(zip(found.prompts, answers, strict=False)):
            row = row_of(prompt.digest, prompt.question)
            row["answers"][entry.name] = asdict(answer)
            if same is not None:
                row["scores"].setdefault(entry.name, {})[SAME] = same[place]
    return list(rows.values())


def build_result(
    entries: Sequence[Entry],
    prepared: Sequence[Prepared],
    found: Gathered,
    rows: Rows,
    counted: Rows,
    champion: str | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `result.json`, as plain data.

    Args:
        entries: What was evaluated.
        prepared: The tasks.
        found: What was gathered.
        rows: Rows of each task as they are stored.
        counted: Those that count.
        champion: What all others are compared with; None for each with each.
        settings: What was asked for; `power` is a difference to say the rows for.
    """
    metrics, names = [*metrics_of(prepared), *_benchmark_metrics(found)], [entry.name for entry in entries]
    if champion is None:
        chosen = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    else:
        chosen = [(name, champion) for name in names if name != champion]
    pairs = pairs_of(counted, chosen, metrics, confidence=CONFIDENCE, power=settings.get("power"))
    return {
        "kind": "evaluation",
        "lamina": __version__,
        "created": timestamp(),
        "settings": {**settings, "confidence": CONFIDENCE},
        "against": champion,
        "subjects": [_subject(entry, found, counted, metrics) for entry in entries],
        "tasks": [
            *(_task(each, rows[each.task.name], counted[each.task.name]) for each in prepared),
            *(_benchmark_task(each, rows[each.task]) for each in _first_benchmarks(found)),
        ],
        "metrics": [asdict(metric) for metric in metrics],
        "pairs": [pair.as_json() for pair in pairs],
        "judged": found.judged,
        "leakage": found.leakage,
        "rows_digest": rows_digest(rows),
    }


def _subject(
    entry: Entry, found: Gathered, counted: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Sequence[Metric]
) -> dict[str, Any]:
    tasks: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        value = estimate_of(counted.get(metric.task, []), entry.name, metric, CONFIDENCE)
        if value is not None:
            tasks.setdefault(metric.task, {})[metric.name] = asdict(value)
    by_task = [given for (_, name), given in found.answers.items() if name == entry.name]
    answers = [answer for given in by_task for answer in given]
    cost = {
        "answers": len(answers),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "answer_tokens": sum(answer.answer_tokens for answer in answers),
        "seconds": round(sum(max((each.seconds for each in given), default=0.0) for given in by_task), 3),
    }
    shown = {
        task: [[turn.content for turn in each.question[-1:]] for each in given]
        for (task, name), given in found.shown.items()
        if name == entry.name and given
    }
    return {**found.facts[entry.name].as_json(), "tasks": tasks, "cost": cost, "examples": shown}


def _task(
    prepared: Prepared, rows: Sequence[Mapping[str, Any]], counted: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    task = prepared.task
    return {
        "name": task.name,
        "digest": task.digest,
        "rows": len(rows),
        "counted": len(counted),
        "rows_digest": rows_digest({task.name: rows}),
        "scorers": {scorer.name: scorer.digest for scorer in prepared.scorers},
        "settings": task.config.model_dump(mode="json"),
    }


def _is_label(value: Any) -> bool:
    """Whether a column's value may be one of few, or is short enough to be stored beside a row."""
    if isinstance(value, float):
        return math.isfinite(value)  # JSON has no NaN
    return isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 200)
