"""The judge of a task: grades by a rubric, row by row, or the answers of each two subjects compared in both orders."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lamina.cache.folder import cache_folder
from lamina.engine.engine import Engine
from lamina.errors import ConfigError
from lamina.evaluation.answers import Answer
from lamina.evaluation.entries import Entry, find_entries
from lamina.evaluation.hosts import open_host
from lamina.evaluation.judge import Judge, Pairing, generator_judge, judge_pairs, judge_rubric, remote_judge
from lamina.evaluation.remote import RemoteModel
from lamina.evaluation.tasks import Task, TaskRow
from lamina.progress import Notify, Progress


@dataclass
class Judged:
    """What a judge said of a task.

    Attributes:
        results: Its results as plain data: one for each subject, or for each two.
        grades: Subject -> a grade for each row; None where it could not be read. Empty without a rubric.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    grades: dict[str, list[float | None]] = field(default_factory=dict)


def judge_task(
    task: Task,
    rows: Sequence[TaskRow],
    answers: Mapping[str, Sequence[Answer]],
    progress: Progress,
    notify: Notify,
) -> Judged:
    """Lets the task's judge look at the answers of its subjects.

    Raises:
        ConfigError: There is no such judge.
        LaminaError: It does not answer; what it said is kept.
    """
    settings = task.config.judging
    if settings is None:
        return Judged()
    cache, found = cache_folder() / "judged", Judged()
    clusters = [row.cluster or row.digest for row in rows]
    with _open_judge(task, notify) as judge:
        if settings.rubric is not None:
            for name, given in answers.items():
                graded = judge_rubric(
                    judge,
                    [(request_of(row), answer.scored) for row, answer in zip(rows, given, strict=True)],
                    settings.rubric,
                    references=[row.reference for row in rows],
                    cache=cache,
                    clusters=clusters,
                    again=settings.again,
                    progress=_named(progress, name),
                )
                found.grades[name] = list(graded.scores)
                found.results.append({"task": task.name, "subject": name, **graded.as_json()})
            return found
        for a, b in itertools.combinations(answers, 2):
            pairs = [
                Pairing(request_of(row), ours.scored, theirs.scored, row.reference)
                for row, ours, theirs in zip(rows, answers[a], answers[b], strict=True)
            ]
            named = _named(progress, f"{a} beside {b}")
            compared = judge_pairs(judge, pairs, cache=cache, clusters=clusters, again=settings.again, progress=named)
            for note in compared.notes:
                notify(f"{task.name}, {a} beside {b}: {note}")
            found.results.append({"task": task.name, "a": a, "b": b, **compared.as_json()})
    return found


def request_of(row: TaskRow) -> str:
    """What a row asks, for a judge: its turn, or where there are several, system turns among them, each with its role.

    >>> from lamina.chat.message import Message
    >>> turns = (Message("system", "Answer in French."), Message("user", "Hello"))
    >>> request_of(TaskRow(1, "row 1", turns, "", "", {}))
    'System: Answer in French.\\n\\nUser: Hello'
    """
    if len(row.messages) < 2:
        return row.question
    return "\n\n".join(f"{message.role.capitalize()}: {message.words()}" for message in row.messages)


def check_judge(task: Task, notify: Notify = lambda message: None) -> list[Entry]:
    """Finds the judge of a task, before anything is answered; nothing if it has none.

    Raises:
        ConfigError: There is no such judge.
    """
    settings = task.config.judging
    if settings is None:
        return []
    try:
        return find_entries([settings.subject], with_base=False, notify=notify)
    except ConfigError as error:
        raise ConfigError(error.problems, f"the judge of {task.name!r}, {settings.subject!r}") from None


@contextlib.contextmanager
def _open_judge(task: Task, notify: Notify) -> Iterator[Judge]:
    entries = check_judge(task, notify)
    with open_host(entries, notify=notify) as host:
        member = host.members[0]
        generator = member.speaker.generator
        if isinstance(generator, RemoteModel):
            yield remote_judge(generator)
        elif isinstance(generator, Engine):
            digest = f"{member.facts.digest} {member.facts.engine}"
            yield generator_judge(generator, member.entry.name, digest, member.speaker.adapter)


def _named(progress: Progress, name: str) -> Progress:
    return lambda what, done, total: progress(f"{what}: {name}", done, total)
