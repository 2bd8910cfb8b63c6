"""Scores a subject's answers to the rows of a task: one number for each row and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.errors import DataError
from lamina.evaluation.answers import Answer
from lamina.evaluation.scorers import Case, Choice, Likelihood, Scorer, find_scorers
from lamina.evaluation.tasks import Task, TaskRow


@dataclass(frozen=True)
class Thoughts:
    """What a model thinks of texts after the prompt of a row.

    Attributes:
        reference: Of the reference; None where no scorer needs it.
        choices: Of each of the row's choices.
    """

    reference: Likelihood | None = None
    choices: tuple[Likelihood, ...] = ()


def build_scorers(task: Task) -> list[Scorer]:
    """The scorers of a task; paths in their options start at the folder of its file.

    Raises:
        ConfigError: There is none of a name, or an option is not allowed.
    """
    described = [_at_home(each, task.folder) for each in task.config.described_scorers]
    return find_scorers(described, f"{task.name}.scorers", task.folder)


def needs_answers(task: Task, scorers: Sequence[Scorer]) -> bool:
    """Whether answers are generated: for a scorer, or for a judge."""
    return task.config.judge is not None or needs(scorers, "answer")


def needs(scorers: Sequence[Scorer], what: str) -> bool:
    """Whether a scorer needs `answer`, `likelihood` or `choices`."""
    return any(scorer.needs == what for scorer in scorers)


def score_rows(
    task: Task,
    scorers: Sequence[Scorer],
    rows: Sequence[TaskRow],
    answers: Sequence[Answer] | None,
    thoughts: Sequence[Thoughts] | None,
) -> dict[str, list[float]]:
    """Scores rows.

    Args:
        task: For errors.
        scorers: Of the task.
        rows: What was asked.
        answers: What was answered; None where no scorer needs it.
        thoughts: What the model thinks of references and choices; None where no scorer needs it.

    Returns:
        For each scorer's name a number for each row.

    Raises:
        DataError: A scorer raises, or gives no number; the error names the task, the row and the scorer.
    """
    found: dict[str, list[float]] = {scorer.name: [] for scorer in scorers}
    for number, row in enumerate(rows):
        case = _case(row, None if answers is None else answers[number], None if thoughts is None else thoughts[number])
        for scorer in scorers:
            try:
                found[scorer.name].append(scorer.score(case))
            except DataError as error:
                raise DataError(f"task {task.name!r}, {row.place}: {error}") from error
    return found


def _case(row: TaskRow, answer: Answer | None, thoughts: Thoughts | None) -> Case:
    choices = () if thoughts is None else tuple(map(Choice, row.choices, thoughts.choices))
    return Case(
        answer="" if answer is None else answer.scored,
        expected=row.reference.strip(),
        row=row.columns,
        number=row.number,
        likelihood=None if thoughts is None else thoughts.reference,
        choices=choices,
    )


def _at_home(described: str | Mapping[str, Any], folder: Path | None) -> str | dict[str, Any]:
    """A description whose paths are seen from the working directory."""
    if isinstance(described, str) or folder is None:
        return described if isinstance(described, str) else dict(described)
    options = dict(described)
    schema = options.get("schema")
    if isinstance(schema, str) and not Path(schema).is_absolute() and (folder / schema).exists():
        options["schema"] = str(folder / schema)
    return options
