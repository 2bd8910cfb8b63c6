"""`run_benchmarks`: tasks of lm-eval, and the scores of each row, so that subjects can be paired."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.engine.generator import Reader
from lamina.errors import ConfigError, DataError, LaminaError, Problem, nearest

_LOCAL = (
    "a task's data is read from the cache of Hugging Face, or from files that a task of your own names "
    "(`dataset_path: json`, `dataset_kwargs: {data_files: ...}`), in a folder given by --include-path"
)


@dataclass(frozen=True)
class BenchmarkRow:
    """One row of a task.

    Attributes:
        number: Of the row in the task, counted from 0.
        digest: SHA-256 of the row, by which the same rows of two runs are paired.
        scores: By metric; numbers alone.
        answer: What the model said, or the log-likelihoods of choices, as text.
        target: What was right, as text.
    """

    number: int
    digest: str
    scores: Mapping[str, float]
    answer: str
    target: str


@dataclass(frozen=True)
class Benchmark:
    """A task's results.

    Attributes:
        task: Its name.
        version: lm-eval's, of the task.
        shots: Examples before each question.
        digest: SHA-256 of the task's description, with all that changes its prompts.
        metrics: As lm-eval reports them: by metric, and `METRIC,FILTER` where a task has several filters.
        larger_is_better: For each metric.
        rows: One by one.
    """

    task: str
    version: str
    shots: int
    digest: str
    metrics: Mapping[str, float]
    larger_is_better: Mapping[str, bool]
    rows: tuple[BenchmarkRow, ...]


def run_benchmarks(
    reader: Reader,
    tasks: Sequence[str | Mapping[str, Any]],
    adapter: str | None = None,
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: str | Path | None = None,
    chat: bool = False,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Benchmark]:
    """Runs tasks of lm-eval; a group of tasks gives the results of each task in it.

    Args:
        reader: Answers.
        tasks: Names of lm-eval or of tasks in `include_path`, or descriptions as in their YAML files.
        adapter: The adapter that answers; None is the bare base.
        limit: Only so many rows of each task, from the start.
        num_fewshot: Examples before each question, instead of the task's own number.
        include_path: A folder of task descriptions.
        chat: Whether prompts are conversations in the generator's template.
        seed: Of the choice of examples, and of drawn answers.
        progress: Called with what is done, how much of it, and how much there is.

    Raises:
        ConfigError: lm-eval is not installed, there is no task of a name, or a task has a setting that the engine does
            not know.
        DataError: A task's data cannot be read here.
    """
    library = _lm_eval()
    language_model = importlib.import_module("lamina.evaluation.benchmarks.language_model")
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(Problem("--include-path", f"{include_path} is no folder", "name one with task descriptions"))
    with _quiet():
        manager = _manager(library.tasks.TaskManager, tasks, include_path)
        try:
            found = library.evaluator.simple_evaluate(
                model=language_model.LaminaLM(reader, adapter, chat=chat, seed=seed, progress=progress),
                tasks=[task if isinstance(task, str) else dict(task) for task in tasks],
                limit=limit,
                num_fewshot=num_fewshot,
                task_manager=manager,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                bootstrap_iters=0,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except LaminaError:
            raise
        except Exception as error:  # of lm-eval, of datasets, of the hub's client: none is a bug of ours
            names = ", ".join(task if isinstance(task, str) else str(task.get("task")) for task in tasks)
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise DataError(f"{names}: cannot be run ({reason}). Fix: {_LOCAL}.") from error
    return [_benchmark(found, name) for name in found["samples"]]


def _benchmark(found: Mapping[str, Any], task: str) -> Benchmark:
    samples, config = found["samples"][task], found["configs"][task]
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    key = _keys(len(filters) > 1)
    rows: dict[int, BenchmarkRow] = {}
    for sample in samples:
        scores = {
            key(metric, sample["filter"]): float(sample[metric])
            for metric in sample["metrics"]
            if isinstance(sample[metric], bool | int | float) or hasattr(sample[metric], "item")
        }
        number = sample["doc_id"]
        before = rows[number].scores if number in rows else {}
        answer, target = _text(sample["filtered_resps"]), _text(sample["target"])
        rows[number] = BenchmarkRow(number, f"sha256:{sample['doc_hash']}", {**before, **scores}, answer, target)
    metrics = {}
    for name, value in found["results"][task].items():
        metric, comma, filtered = name.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            metrics[key(metric, filtered)] = float(value)
    better = found["higher_is_better"].get(task, {})
    return Benchmark(
        task=task,
        version=str(found["versions"].get(task, "")),
        shots=int(found["n-shot"].get(task, 0)),
        digest=_digest(config),
        metrics=metrics,
        larger_is_better={name: bool(better.get(name.partition(",")[0], True)) for name in metrics},
        rows=tuple(rows[number] for number in sorted(rows)),
    )


def _keys(several: bool) -> Callable[[str, str], str]:
    return lambda metric, filtered: f"{metric},{filtered}" if several else metric


def _text(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:
        return _text(value[0])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _digest(config: Mapping[str, Any]) -> str:
    """Of a task's description; functions in it by their names, for their addresses change."""
    text = json.dumps(config, sort_keys=True, default=lambda value: getattr(value, "__name__", type(value).__name__))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _manager(kind: Any, tasks: Sequence[str | Mapping[str, Any]], include_path: str | Path | None) -> Any:
    """lm-eval's index of tasks: of the folder alone where it has all that are named, for its own takes seconds to read.

    Raises:
        ConfigError: There is no task of a name.
    """
    if not tasks:
        raise ConfigError(Problem("--tasks", "names no task", "name some, such as arc_challenge,hellaswag"))
    names = [task for task in tasks if isinstance(task, str)]
    folder = None if include_path is None else str(include_path)
    if folder is not None or not names:
        manager = kind(include_path=folder, include_defaults=False)
        if set(names) <= set(manager.all_tasks):
            return manager
    manager = kind(include_path=folder)
    for name in names:
        if name not in manager.all_tasks:
            message = f"{name!r} is no task of lm-eval, and of no description in --include-path"
            raise ConfigError(Problem("--tasks", message, nearest(name, manager.all_tasks) or "see `lm-eval ls tasks`"))
    return manager


def _lm_eval() -> Any:
    try:
        importlib.import_module("lm_eval.evaluator")
        importlib.import_module("lm_eval.tasks")
        return importlib.import_module("lm_eval")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        message = "needs the package lm-eval, which is not installed."
        raise ConfigError(Problem("--tasks", message, "pip install 'lamina[lm-eval]'")) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps lm-eval's notes out of the output; its errors stay."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
