"""Gathers what an evaluation needs of each subject: answers, scores, what training saw, and forgetting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lamina import files
from lamina.cache.folder import cache_folder
from lamina.checks.overlap import Overlap
from lamina.config.tasks import GENERAL
from lamina.errors import ConfigError, Problem
from lamina.evaluation.answers import Answer, AnswerFile
from lamina.evaluation.asking import Shown, answer_rows
from lamina.evaluation.benchmarks.run import Benchmark, run_benchmarks
from lamina.evaluation.entries import Entry, SubjectFacts
from lamina.evaluation.general.measure import ANSWER, General, general_digest, measure_general, read_general
from lamina.evaluation.hosts import Host, Member, open_host
from lamina.evaluation.judging import judge_task
from lamina.evaluation.leakage import Trained, leak_counts, leaked_rows, trained_rows
from lamina.evaluation.scorers import JUDGE, Scorer
from lamina.evaluation.scoring import needs, needs_answers, score_rows
from lamina.evaluation.shown import choose_examples
from lamina.evaluation.tasks import Task, TaskRow
from lamina.evaluation.thoughts import think
from lamina.progress import Notify, Progress


@dataclass(frozen=True)
class Prepared:
    """A task whose rows and scorers are ready.

    Attributes:
        task: The task.
        rows: What is asked.
        scorers: What scores.
    """

    task: Task
    rows: list[TaskRow]
    scorers: list[Scorer]


@dataclass(frozen=True)
class Benchmarks:
    """Tasks of lm-eval, beside a user's own.

    Attributes:
        names: Tasks and groups of tasks.
        limit: Only so many rows of each.
        shots: Examples before each question, instead of the task's own number.
        include_path: A folder of task descriptions.
        chat: Whether prompts are conversations in the subject's template.
    """

    names: tuple[str, ...] = ()
    limit: int | None = None
    shots: int | None = None
    include_path: str | None = None
    chat: bool = False


@dataclass(frozen=True)
class Options:
    """How subjects are evaluated.

    Attributes:
        seed: Of the examples in prompts.
        forgetting: Whether general text is measured.
        general: A file of general text; None for lamina's own.
        model: For adapters: another base than the one that they name.
        allow_base_mismatch: Go on although a lock does not fit.
        benchmarks: Tasks of lm-eval.
        progress: Called with what is being done, how much of it is done, and how much there is.
        notify: Called with a sentence on what a user should know.
    """

    seed: int = 0
    forgetting: bool = True
    general: str | None = None
    model: str | None = None
    allow_base_mismatch: bool = False
    benchmarks: Benchmarks = Benchmarks()
    progress: Progress = lambda what, done, total: None
    notify: Notify = lambda message: None


@dataclass
class Gathered:
    """What was found, by names of tasks and subjects.

    Attributes:
        facts: What each subject is.
        answers: (task, subject) -> an answer for each row.
        scores: (task, subject) -> metric -> a number for each row.
        leaks: (task, subject) -> which rows training saw.
        leakage: subject -> task -> how many.
        shown: (task, subject) -> examples in its prompts.
        general: subject -> metric -> a number for each piece of text.
        general_rows: Subject -> the digests of its pieces.
        texts: The pieces by digest.
        prompts: The unrelated prompts, if they were asked.
        benchmarks: subject -> what lm-eval found, task by task.
        judged: What judges said, as plain data.
    """

    facts: dict[str, SubjectFacts] = field(default_factory=dict)
    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    scores: dict[tuple[str, str], dict[str, list[float | None]]] = field(default_factory=dict)
    leaks: dict[tuple[str, str], list[Overlap | None]] = field(default_factory=dict)
    leakage: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    shown: dict[tuple[str, str], tuple[Shown, ...]] = field(default_factory=dict)
    general: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    general_rows: dict[str, list[str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    prompts: list[TaskRow] = field(default_factory=list)
    benchmarks: dict[str, list[Benchmark]] = field(default_factory=dict)
    judged: list[dict[str, Any]] = field(default_factory=list)


def gather(entries: Sequence[Entry], prepared: Sequence[Prepared], options: Options) -> Gathered:
    """Evaluates entries group by group, so that one base is in memory at a time.

    Raises:
        LaminaError: A subject cannot be loaded or asked, or a row cannot be scored; answers so far are kept.
    """
    found = Gathered()
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    for members in groups.values():
        opened = open_host(
            members, model=options.model, allow_base_mismatch=options.allow_base_mismatch, notify=options.notify
        )
        with opened as host:
            _gather_group(host, prepared, options, found)
    _gather_judged(prepared, options, found)
    return found


def _gather_judged(prepared: Sequence[Prepared], options: Options, found: Gathered) -> None:
    """Lets judges look at the answers; no subject is in memory any more."""
    names = list(found.facts)
    for each in prepared:
        if each.task.config.judging is None:
            continue
        answers = {name: given for name in names if (given := found.answers.get((each.task.name, name)))}
        judged = judge_task(each.task, each.rows, answers, options.progress, options.notify)
        found.judged += judged.results
        for name, grades in judged.grades.items():
            found.scores.setdefault((each.task.name, name), {})[JUDGE] = grades


def _gather_group(host: Host, prepared: Sequence[Prepared], options: Options, found: Gathered) -> None:
    trained = {member.entry.name: _trained(member) for member in host.members}
    known = [each for each in trained.values() if each.examples]
    for member in host.members:
        name = member.entry.name
        found.facts[name] = member.facts
        for note in member.facts.notes:
            options.notify(f"{name}: {note}")
        for each in prepared:
            _ask_task(member, each, known, options, found)
            if member.adapter is not None:
                leaks = leaked_rows(each.rows, trained[name])
                found.leaks[each.task.name, name] = leaks
                found.leakage.setdefault(name, {})[each.task.name] = leak_counts(leaks, trained[name])
    if options.benchmarks.names:
        _gather_benchmarks(host, prepared, options, found)
    if options.forgetting and host.engine is not None:
        _gather_general(host, options, found)


def _trained(member: Member) -> Trained:
    template = member.speaker.template
    if member.adapter is None or template is None:
        return Trained()
    return trained_rows(member.adapter, template)


def _ask_task(member: Member, prepared: Prepared, known: Sequence[Trained], options: Options, found: Gathered) -> None:
    task, rows, scorers = prepared.task, prepared.rows, prepared.scorers
    name, key = member.entry.name, (prepared.task.name, member.entry.name)
    count = member.entry.few_shot or task.config.few_shot
    shown = choose_examples(task, rows, count, known, options.seed)
    speaker = replace(member.speaker, shown=shown)
    found.shown[key] = shown
    report = _report(options.progress, f"{task.name}: answers of {name}", len(rows))
    answers = None
    if needs_answers(task, scorers):
        with AnswerFile(answers_path(member.facts)) as file:
            answers = found.answers[key] = answer_rows(speaker, rows, task.config.generation, file, report)
    thoughts = None
    if needs(scorers, "likelihood") or needs(scorers, "choices"):
        report = _report(options.progress, f"{task.name}: likelihoods of {name}", len(rows))
        thoughts = think(speaker, rows, scorers, report)
    scored = score_rows(task, scorers, rows, answers, thoughts)
    found.scores[key] = {metric: list(values) for metric, values in scored.items()}


def check_names(prepared: Sequence[Prepared], benchmarks: Iterable[str]) -> None:
    """Checks that no task of lm-eval has the name of one beside it, whose rows and scores would be taken for its own.

    Raises:
        ConfigError: One has.
    """
    taken = {GENERAL, *(each.task.name for each in prepared)}
    for name in benchmarks:
        if name in taken:
            message = f"{name!r} is also the name of another task of this evaluation"
            raise ConfigError(Problem("--tasks", message, "give yours another `name`"))


def _gather_benchmarks(host: Host, prepared: Sequence[Prepared], options: Options, found: Gathered) -> None:
    wanted = options.benchmarks
    for member in host.members:
        if member.entry.few_shot:
            continue
        if host.engine is None:
            message = f"lm-eval's tasks need log-likelihoods, which {member.entry.name} does not give"
            raise ConfigError(Problem("--tasks", message, "name subjects that run here"))
        name = member.entry.name
        found.benchmarks[name] = run_benchmarks(
            host.engine,
            wanted.names,
            member.speaker.adapter,
            limit=wanted.limit,
            num_fewshot=wanted.shots,
            include_path=wanted.include_path,
            chat=wanted.chat,
            seed=options.seed,
            progress=_named(options.progress, name),
        )
        check_names(prepared, (each.task for each in found.benchmarks[name]))  # of groups, they are known only now


def _named(progress: Progress, name: str) -> Progress:
    return lambda what, done, total: progress(f"{what}: {name}", done, total)


def _gather_general(host: Host, options: Options, found: Gathered) -> None:
    engine = host.engine
    if engine is None:
        return
    general = read_general(engine, options.general)
    members = [member for member in host.members if not member.entry.few_shot]
    values = _measured(host, members, general, options)
    found.prompts = list(general.prompts)
    base: list[Answer] | None = None
    for member in sorted(members, key=lambda member: member.adapter is not None):  # the base first
        name, template = member.entry.name, member.speaker.template
        tokenizer = "" if template is None else template.tokenizer_digest
        found.general_rows[name] = general.digests(tokenizer)
        found.texts |= dict(zip(found.general_rows[name], general.texts, strict=True))
        found.general[name] = values[name]
        report = _report(options.progress, f"{GENERAL}: answers of {name}", len(general.prompts))
        with AnswerFile(answers_path(member.facts)) as file:
            answers = answer_rows(member.speaker, general.prompts, ANSWER, file, report)
        found.answers[GENERAL, name] = answers
        if member.adapter is None:
            base = answers
        elif base is not None:
            same: list[float | None] = [
                float(ours.text == theirs.text) for ours, theirs in zip(answers, base, strict=True)
            ]
            found.scores[GENERAL, name] = {"general_same": same}


def _measured(
    host: Host, members: Sequence[Member], general: General, options: Options
) -> Mapping[str, dict[str, list[float]]]:
    """Loss and KL of each member; those that were measured before are read."""
    text = general_digest(options.general)
    paths = {member.entry.name: _general_path(member.facts, text, len(general.pieces)) for member in members}
    found: dict[str, dict[str, list[float]]] = {}
    for name, path in paths.items():
        try:
            found[name] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    missing = [member for member in members if member.entry.name not in found]
    if missing and host.engine is not None:
        report = _report(options.progress, "general text: loss and KL", len(general.pieces))
        adapters = [member.speaker.adapter for member in missing]
        measured = measure_general(host.engine, general.pieces, adapters, report)
        for member in missing:
            found[member.entry.name] = measured[member.speaker.adapter]
            files.write_json(paths[member.entry.name], found[member.entry.name])
    return found


def answers_path(facts: SubjectFacts) -> Path:
    """Where the answers of a subject are, as it is now, on what computes it now."""
    digest = hashlib.sha256(f"{facts.digest} {facts.engine}".encode()).hexdigest()[:32]
    return cache_folder() / "answers" / f"{digest}.jsonl"


def _general_path(facts: SubjectFacts, text: str, pieces: int) -> Path:
    digest = hashlib.sha256(f"{facts.digest} {facts.engine} {text} {pieces}".encode()).hexdigest()[:32]
    return cache_folder() / "answers" / f"{digest}.json"


def _report(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    return lambda done: progress(what, done, total)
