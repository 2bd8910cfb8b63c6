"""`lamina eval` of several subjects on tasks: the tasks that options name, and the table that is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from lamina.cli.output import Bars, notify, out, print_json
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.evaluation.gather import Benchmarks
    from lamina.evaluation.store import StoredEvaluation
    from lamina.evaluation.tasks import Task


def evaluate_tasks(
    subjects: Sequence[str], tasks: Sequence[Task], benchmarks: Benchmarks | None, as_json: bool, **options: Any
) -> None:
    """Evaluates subjects on tasks, stores the evaluation, and prints it.

    Args:
        subjects: What is evaluated.
        tasks: The tasks.
        benchmarks: Those of lm-eval, if any.
        as_json: Whether to print one JSON object.
        options: As `evaluate_subjects` takes them.
    """
    from lamina.evaluation.subjects import evaluate_subjects

    with Bars() as bars:
        found = evaluate_subjects(
            subjects, tasks, benchmarks=benchmarks, progress=bars.update, notify=notify, **options
        )
    print_found(evaluation_json(found) if as_json else found.result, as_json)
    if not as_json:
        out.print(f"evaluation: {found.path} (open page.html)", markup=False)


def benchmarks_of(names: str, max_rows: int | None, include_path: Path | None, chat: bool) -> Benchmarks | None:
    """Returns the tasks of lm-eval that `--tasks` names, separated by commas; None for none."""
    from lamina.evaluation.gather import Benchmarks

    found = tuple(name.strip() for name in names.split(",") if name.strip())
    return (
        Benchmarks(found, max_rows, None, None if include_path is None else str(include_path), chat) if found else None
    )


def tasks_of(
    names: Sequence[str],
    data: str | None,
    mapping: dict[str, str] | None,
    scorers: Sequence[str],
    max_new_tokens: int | None,
    max_rows: int | None,
    cluster_by: str | None,
) -> list[Task]:
    """Returns the tasks that were named, or the task of a data file, with what options change of them.

    Raises:
        ConfigError: There is no task, or `--data` is for several.
    """
    if not names and data is None:
        raise ConfigError(Problem("--task", "is required", "name a task's .yaml file, or give rows with --data FILE"))
    if data is not None and len(names) > 1:
        raise ConfigError(Problem("--data", f"replaces the rows of one task, and {len(names)} are named", "name one"))
    from lamina.evaluation.tasks import find_tasks, task_of_data

    if not names and data is not None:
        tasks = [task_of_data(data, scorers, mapping)]
    else:
        data = None if data is None else str(Path(data).absolute()) if Path(data).exists() else data
        more = {"data": data, "columns": mapping, "scorers": list(scorers) or None}
        tasks = [task.changed(**more) for task in find_tasks(names)]
    found = []
    for task in tasks:
        generation = task.config.generation
        longer = None if max_new_tokens is None else generation.model_copy(update={"max_tokens": max_new_tokens})
        found.append(task.changed(generation=longer, limit=max_rows, cluster_by=cluster_by))
    return found


def evaluation_json(found: StoredEvaluation) -> dict[str, Any]:
    """What `lamina eval --json` prints of a stored evaluation."""
    kept = ("subjects", "pairs", "against", "tasks", "leakage", "rows_digest")
    of_rows = ("scores", "verdicts")  # in the folder
    return {
        **{name: found.result[name] for name in kept},
        "judged": [{key: each[key] for key in each if key not in of_rows} for each in found.result["judged"]],
        "evaluation": str(found.path),
        "digest": found.digest,
        "page": str(found.path / "page.html"),
    }


def print_found(result: Mapping[str, Any], as_json: bool) -> None:
    """Prints what was found as JSON, or as the table and the verdicts."""
    if as_json:
        print_json(dict(result))
        return
    from lamina.evaluation.page import judged_line, verdict_line

    subjects = result["subjects"]
    table = Table("(95% interval)", *(escape(subject["subject"]) for subject in subjects))
    for metric in result["metrics"]:
        task, name = metric["task"], metric["name"]
        values = [subject["tasks"].get(task, {}).get(name) for subject in subjects]
        if any(values):
            table.add_row(escape(f"{task}: {name}"), *map(_cell, values))
    out.print(table)
    for pair in result["pairs"]:
        out.print(verdict_line(pair), markup=False)
    for judged in result.get("judged", []):
        out.print(judged_line(judged), markup=False)
    for subject, tasks in result["leakage"].items():
        for task, counts in tasks.items():
            if counts["exact"] or counts["near"]:
                seen = f"{counts['exact']} prompts of {task}, and {counts['near']} nearly the same"
                out.print(f"the training of {subject} saw {seen}", markup=False)
            if counts["unknown"]:
                out.print(f"what {subject} was trained on is not certain: {counts['unknown']}", markup=False)


def _cell(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f})"
