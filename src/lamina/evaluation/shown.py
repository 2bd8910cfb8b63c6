"""Examples in prompts: drawn by seed from training rows, and never a row that is asked."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lamina.config import DataConfig
from lamina.data.dataset import load_examples
from lamina.data.example import Example, Kind
from lamina.errors import ConfigError, Problem
from lamina.evaluation.asking import Shown
from lamina.evaluation.leakage import Trained, prompt_of
from lamina.evaluation.tasks import Task, TaskRow


def choose_examples(
    task: Task, rows: Sequence[TaskRow], count: int, trained: Sequence[Trained], seed: int
) -> tuple[Shown, ...]:
    """Draws examples for the prompts of a task.

    Args:
        task: Names where they come from, if it does.
        rows: What is asked; a row with the same prompt is no example.
        count: How many.
        trained: What adapters were trained on; the first whose rows are known gives them.
        seed: Of the draw.

    Raises:
        ConfigError: There are not as many.
    """
    if not count:
        return ()
    pool = _pool(task, trained)
    asked = {" ".join(row.prompt.split()) for row in rows}
    usable = [row for row in pool if row.kind is Kind.CONVERSATION and " ".join(prompt_of(row).split()) not in asked]
    if len(usable) < count:
        message = f"the task {task.name!r} has {len(usable)} rows to draw {count} examples from"
        fix = "evaluate a run whose training rows are there, or name them in the task with `examples: FILE`"
        raise ConfigError(Problem("--few-shot", message, fix))
    drawn = random.Random(f"{seed} {task.name}").sample(usable, count)
    return tuple(Shown(row.prompt, row.answer) for row in drawn)


def _pool(task: Task, trained: Sequence[Trained]) -> Sequence[Example]:
    if task.config.examples is not None:
        path = task.path(task.config.examples)
        data = DataConfig(train=path, format=task.config.format, columns=task.config.columns)
        return load_examples(data, path, f"{task.name}.examples", None)
    return next((each.examples for each in trained if each.examples), ())
