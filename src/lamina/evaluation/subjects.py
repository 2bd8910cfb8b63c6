"""`evaluate_subjects`: several subjects on the same rows, with statistics of every pair, stored as a folder."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lamina.config.tasks import GENERAL
from lamina.errors import ConfigError, DataError, Problem, nearest
from lamina.evaluation.entries import Entry, find_entries, names_own_base
from lamina.evaluation.gather import Benchmarks, Options, Prepared, answers_path, check_names, gather
from lamina.evaluation.judging import check_judge
from lamina.evaluation.page import evaluation_page
from lamina.evaluation.result import build_result, stored_rows, unseen
from lamina.evaluation.scoring import build_scorers
from lamina.evaluation.store import StoredEvaluation, check_place, read_evaluation, write_evaluation
from lamina.evaluation.tasks import Task, find_tasks, read_task_rows
from lamina.progress import Notify, Progress
from lamina.runs import Run, timestamp


def evaluate_subjects(
    subjects: Sequence[str | Path],
    tasks: Sequence[str | Path | Task] = (),
    *,
    benchmarks: Benchmarks | None = None,
    against: str | Path | None = None,
    few_shot: int = 0,
    general: str | Path | None = None,
    forgetting: bool = True,
    power: float | None = None,
    allow_leakage: bool = False,
    with_base: bool = True,
    need_rows: bool = True,
    seed: int = 0,
    model: str | Path | None = None,
    allow_base_mismatch: bool = False,
    out: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
    notify: Notify = lambda message: None,
) -> StoredEvaluation:
    """Evaluates subjects on the same rows and stores the result; what was answered before is not asked again.

    Args:
        subjects: Runs, adapters, bases, merged folders, or `http://HOST:PORT/v1#MODEL`.
        tasks: YAML files, names of built-in tasks, or what `find_tasks` gave.
        benchmarks: Tasks of lm-eval, beside those.
        against: A subject that all others are compared with, or `base` for the adapters' own; by default each is
            compared with each after it.
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
        out: The folder to write, in place of an evaluation that is there; by default a new one in `evaluations`, of the
            run if there is one run.
        progress: Called with what is being done, how much of it is done, and how much there is.
        notify: Called with a sentence on what a user should know.

    Raises:
        ConfigError: A subject, a task or a scorer does not exist, a setting is not allowed, or `out` holds what is no
            evaluation.
        DataError: A row cannot be asked or scored, or training saw every row.
        AdapterError, ModelError: A subject cannot be loaded.
    """
    prepared = prepare(tasks) if tasks or not (forgetting or benchmarks) else []
    refs = [str(subject) for subject in subjects]
    to_base = against is not None and names_own_base(against)
    everything = [*refs, *([str(against)] if against is not None and not to_base else [])]
    if not everything:
        raise ConfigError(Problem("SUBJECT", "is required", "name a run, an adapter, a base or a URL"))
    chosen = benchmarks or Benchmarks()
    check_names(prepared, chosen.names)
    for each in prepared:
        check_judge(each.task, notify)
    base = None if model is None else str(model)
    entries = find_entries(everything, few_shot=few_shot, model=base, with_base=with_base or to_base, notify=notify)
    champion = _own_base(entries) if to_base else _champion(entries, everything, against, base)
    if few_shot and not any(entry.few_shot for entry in entries):
        message = "has no effect: it adds the base with examples, and no base or adapter is named"
        raise ConfigError(Problem("--few-shot", message, "name one, or set few_shot and examples in the task's file"))
    if general is not None and (not forgetting or all(entry.kind == "url" for entry in entries)):
        reason = "forgetting is not measured" if not forgetting else "a model at a URL gives no losses"
        raise ConfigError(Problem("--general", f"has no effect: {reason}", "leave it out"))
    where = Path(out) if out is not None else default_folder(entries, prepared)
    check_place(where)
    text = None if general is None else str(general)
    options = Options(seed, forgetting, text, base, allow_base_mismatch, chosen, progress, notify)
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
    settings = {
        "few_shot": few_shot,
        "seed": seed,
        "general": options.general,
        "allow_leakage": allow_leakage,
        "power": power,
        "benchmarks": asdict(options.benchmarks),
    }
    result = build_result(entries, prepared, found, rows, counted, champion, settings)
    write_evaluation(where, result, rows, evaluation_page(result, rows, counted))
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


def default_folder(entries: Sequence[Entry], prepared: Sequence[Prepared]) -> Path:
    """A new folder for an evaluation, in its run if one run is evaluated."""
    adapters = [entry.adapter for entry in entries if entry.adapter is not None]
    root = Path()
    if len(adapters) == 1 and Run(adapters[0]).config_path.is_file():
        root = adapters[0]
    stamp = timestamp().replace(":", "").replace("-", "")[:15]
    names = "-".join(each.task.name for each in prepared)[:60] or GENERAL
    # Another process may evaluate the same in the same second.
    return root / "evaluations" / f"{stamp}-{names}-{uuid.uuid4().hex[:6]}"


def _own_base(entries: Sequence[Entry]) -> str:
    """The bare base beside the adapters; without adapters the one base, beside what is no base."""
    plain = [entry for entry in entries if not entry.few_shot]
    groups = {entry.group for entry in plain if entry.kind == "adapter"}
    bases = [entry for entry in plain if entry.kind == "base" and (entry.group in groups or not groups)]
    if len(bases) == 1 and len(plain) > 1:
        return bases[0].name
    message, fix = "'base' is the bare base of the adapters that are named, and there are none", "name an adapter"
    if groups:
        message = f"'base' is the bare base of all adapters, and theirs are {', '.join(map(_held, bases))}"
        fix = "name adapters of one base, or the base itself by its path or alias"
    raise ConfigError(Problem("--against", message, fix))


def _held(base: Entry) -> str:
    quantization = base.subject and base.subject.quantization
    return f"{base.name} in {quantization.bits} bits" if quantization else base.name


def _champion(
    entries: Sequence[Entry], refs: Sequence[str], against: str | Path | None, model: str | None
) -> str | None:
    if against is None:
        return None
    names = [entry.name for entry in entries]
    wanted = find_entries([str(against)], model=model, with_base=False)[0]
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
