"""`evaluate_subjects`: several subjects on the same rows, with statistics of every pair, stored as a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lamina.config.tasks import GENERAL
from lamina.errors import ConfigError, DataError, Problem, nearest
from lamina.evaluation.entries import Entry, find_entries
from lamina.evaluation.gather import Gathered, Options, Prepared, answers_path, gather
from lamina.evaluation.general.measure import KL, LOSS, SAME
from lamina.evaluation.page import evaluation_page
from lamina.evaluation.scoring import build_scorers
from lamina.evaluation.store import StoredEvaluation, read_evaluation, write_evaluation
from lamina.evaluation.table import Metric, estimate_of, pairs_of
from lamina.evaluation.tasks import Task, TaskRow, find_tasks, read_task_rows
from lamina.progress import Notify, Progress
from lamina.runs import Run, timestamp
from lamina.version import __version__

CONFIDENCE = 0.95


def evaluate_subjects(
    subjects: Sequence[str | Path],
    tasks: Sequence[str | Path | Task],
    *,
    against: str | Path | None = None,
    few_shot: int = 0,
    general: str | Path | None = None,
    forgetting: bool = True,
    power: float | None = None,
    allow_leakage: bool = False,
    with_base: bool = True,
    need_rows: bool = True,
    seed: int = 0,
    model: str | None = None,
    allow_base_mismatch: bool = False,
    out: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
    notify: Notify = lambda message: None,
) -> StoredEvaluation:
    """Evaluates subjects on the same rows and stores the result; what was answered before is not asked again.

    Args:
        subjects: Runs, adapters, bases, merged folders, or `http://HOST:PORT/v1#MODEL`.
        tasks: YAML files, names of built-in tasks, or what `find_tasks` gave.
        against: A subject that all others are compared with; by default each is compared with each after it.
        few_shot: Also evaluate the base with that many examples in its prompt, drawn from the training rows.
        general: A file of general text to measure forgetting on, instead of lamina's own.
        forgetting: Whether to measure it.
        power: A difference to say the rows for; by default the one that is seen.
        allow_leakage: Let rows count that training saw.
        with_base: Whether the bare base is beside each adapter.
        need_rows: Whether it is an error that training saw every row of a task.
        seed: Of the examples in prompts.
        model: For adapters: another base than the one that they name.
        allow_base_mismatch: Go on although a lock does not fit.
        out: The folder to write; by default a new one in `evaluations`, of the run if there is one run.
        progress: Called with what is being done, how much of it is done, and how much there is.
        notify: Called with a sentence on what a user should know.

    Raises:
        ConfigError: A subject, a task or a scorer does not exist, or a setting is not allowed.
        DataError: A row cannot be asked or scored, or training saw every row.
        AdapterError, ModelError: A subject cannot be loaded.
    """
    prepared = prepare(tasks) if tasks or not forgetting else []
    refs = [str(subject) for subject in subjects]
    everything = [*refs, *([str(against)] if against is not None else [])]
    if not everything:
        raise ConfigError(Problem("SUBJECT", "is required", "name a run, an adapter, a base or a URL"))
    entries = find_entries(everything, few_shot=few_shot, model=model, with_base=with_base, notify=notify)
    champion = _champion(entries, everything, against)
    where = Path(out) if out is not None else default_folder(entries, prepared)
    options = Options(
        seed, forgetting, None if general is None else str(general), model, allow_base_mismatch, progress, notify
    )
    found = gather(entries, prepared, options)
    rows = stored_rows(entries, prepared, found)
    counted = rows if allow_leakage else {name: unseen(task_rows) for name, task_rows in rows.items()}
    for name, task_rows in counted.items():
        if not task_rows and need_rows:
            message = f"the task {name!r}: training saw the prompt of each of its {len(rows[name])} rows"
            raise DataError(f"{message}. Fix: evaluate on other rows, or insist with --allow-leakage.")
        if len(task_rows) < len(rows[name]):
            left_out = len(rows[name]) - len(task_rows)
            notify(f"{name}: {left_out} of {len(rows[name])} rows do not count, since training saw their prompts")
    result = _result(entries, prepared, found, rows, counted, champion, options, power, allow_leakage, few_shot)
    write_evaluation(where, result, rows, evaluation_page(result, rows))
    for entry in entries:
        if entry.kind == "url":  # another model may answer there tomorrow
            answers_path(found.facts[entry.name]).unlink(missing_ok=True)
    return read_evaluation(where)


def prepare(tasks: Sequence[str | Path | Task]) -> list[Prepared]:
    """Reads tasks with their rows and scorers, before anything is loaded.

    Raises:
        ConfigError, DataError: One cannot be used.
    """
    named = [str(task) for task in tasks if not isinstance(task, Task)]
    found = iter(find_tasks(named))
    every = [task if isinstance(task, Task) else next(found) for task in tasks]
    if not every:
        raise ConfigError(Problem("--task", "is required", "name a task's .yaml file, or give --data FILE"))
    twice = sorted({task.name for task in every if sum(task.name == other.name for other in every) > 1})
    if twice:
        raise ConfigError(Problem("--task", f"{twice[0]!r} is the name of two tasks", "rename one"))
    return [Prepared(task, read_task_rows(task), build_scorers(task)) for task in every]


def stored_rows(
    entries: Sequence[Entry], prepared: Sequence[Prepared], found: Gathered
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task as they are stored, and those of general text."""
    rows = {
        each.task.name: [_stored(each, row, place, entries, found) for place, row in enumerate(each.rows)]
        for each in prepared
    }
    general = _general_rows(entries, found)
    return {**rows, GENERAL: general} if general else rows


def unseen(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows whose prompts no subject's training saw."""
    return [row for row in rows if "exact" not in row.get("leaked", {}).values()]


def metrics_of(prepared: Sequence[Prepared]) -> list[Metric]:
    """What is measured: the scorers of the tasks, and forgetting."""
    of_tasks = [
        Metric(each.task.name, scorer.name, scorer.larger_is_better) for each in prepared for scorer in each.scorers
    ]
    return [*of_tasks, Metric(GENERAL, LOSS, False), Metric(GENERAL, KL, False), Metric(GENERAL, SAME, True)]


def rows_digest(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """SHA-256 of the digests of all rows, by task."""
    text = "\n".join(f"{name} {row['digest']}" for name in sorted(rows) for row in rows[name])
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def default_folder(entries: Sequence[Entry], prepared: Sequence[Prepared]) -> Path:
    """A new folder for an evaluation, in its run if one run is evaluated."""
    adapters = [entry.adapter for entry in entries if entry.adapter is not None]
    root = Path()
    if len(adapters) == 1 and Run(adapters[0]).config_path.is_file():
        root = adapters[0]
    stamp = timestamp().replace(":", "").replace("-", "")[:15]
    stem = f"{stamp}-{'-'.join(each.task.name for each in prepared)[:60] or GENERAL}"
    folder, number = root / "evaluations" / stem, 2
    while folder.exists():
        folder, number = root / "evaluations" / f"{stem}-{number}", number + 1
    return folder


def _champion(entries: Sequence[Entry], refs: Sequence[str], against: str | Path | None) -> str | None:
    if against is None:
        return None
    names = [entry.name for entry in entries]
    wanted = find_entries([str(against)], with_base=False)[0]
    same = [
        e.name
        for e in entries
        if not e.few_shot
        and (e.kind, e.group, e.adapter, e.url) == (wanted.kind, wanted.group, wanted.adapter, wanted.url)
    ]
    if same:
        return same[0]
    if str(against) in names:
        return str(against)
    raise ConfigError(
        Problem("--against", f"{str(against)!r} is none of {', '.join(refs)}", nearest(str(against), names))
    )


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


def _result(
    entries: Sequence[Entry],
    prepared: Sequence[Prepared],
    found: Gathered,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    counted: Mapping[str, Sequence[Mapping[str, Any]]],
    champion: str | None,
    options: Options,
    power: float | None,
    allow_leakage: bool,
    few_shot: int,
) -> dict[str, Any]:
    metrics, names = metrics_of(prepared), [entry.name for entry in entries]
    if champion is None:
        chosen = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    else:
        chosen = [(name, champion) for name in names if name != champion]
    pairs = pairs_of(counted, chosen, metrics, confidence=CONFIDENCE, power=power)
    return {
        "kind": "evaluation",
        "lamina": __version__,
        "created": timestamp(),
        "settings": {
            "few_shot": few_shot,
            "seed": options.seed,
            "general": options.general,
            "allow_leakage": allow_leakage,
            "confidence": CONFIDENCE,
            "power": power,
        },
        "against": champion,
        "subjects": [_subject(entry, found, counted, metrics) for entry in entries],
        "tasks": [_task(each, rows[each.task.name], counted[each.task.name]) for each in prepared],
        "metrics": [asdict(metric) for metric in metrics],
        "pairs": [pair.as_json() for pair in pairs],
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
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 200)
