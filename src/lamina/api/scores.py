"""Metrics of a finished run: functions of the user's over the answers of base model and adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lamina.config import Config
from lamina.errors import ConfigError, LaminaError, Problem
from lamina.evaluation.evaluate import evaluate
from lamina.evaluation.scorers import Given, find_scorers
from lamina.runs import Run
from lamina.runs.events import Note, OnEvent

Metric = str | Callable[..., float]


Metrics = Metric | Sequence[Metric] | Mapping[str, Metric]


def find_metrics(metrics: Metrics) -> list[Given]:
    """Returns metrics as scorers, which can be built.

    Args:
        metrics: Functions of (answer, expected), or names of scorers; one, several, or by name.

    Raises:
        ConfigError: One is no scorer, or takes other arguments.
    """
    if isinstance(metrics, Mapping):
        scorers: list[Given] = [_named(name, metric) for name, metric in metrics.items()]
    else:
        scorers = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics)
    find_scorers(scorers, "metrics")
    return scorers


def check_metrics(metrics: Sequence[Given], config: Config) -> None:
    """Checks before training that there will be answers to measure.

    Raises:
        ConfigError: There are no evaluation rows, or no answers.
    """
    if metrics and config.data.eval is None:
        message = "are measured on evaluation rows, and there are none"
        raise ConfigError(Problem("metrics", message, "give eval_data, such as eval_data=0.1"))
    if metrics and config.loss.type == "classification":
        message = "compare generated answers, and a classifier has none"
        raise ConfigError(Problem("metrics", message, "leave them out: accuracy and macro F1 are always there"))


def measure_answers(run: Run, metrics: Sequence[Given], tell: OnEvent) -> None:
    """Scores the answers to the evaluation rows, and records the means in the run's manifest (`run.scores`).

    Args:
        run: A finished run with evaluation rows.
        metrics: From `find_metrics`.
        tell: Told the results.

    Raises:
        ConfigError: The run has no evaluation rows, or a metric is no scorer.
        DataError: A metric raises, or returns something other than a number. The run is finished all the same.
    """
    assert run.summary is not None, "the run is finished"
    step = run.summary.steps
    tell(Note(step, message="Generating answers for the metrics ..."))
    try:
        found = evaluate(run.path, score=metrics, notify=lambda message: tell(Note(step, message=message)))
    except LaminaError as error:
        error.add_note(f"Training is finished: lamina.load_run({str(run.path)!r}) is the run.")
        raise
    scores = {name: {"base": each.base, "adapter": each.adapter} for name, each in found.scores.items()}
    run.record(scores=scores)
    for name, each in scores.items():
        tell(Note(step, message=f"{name}: {each['base']:.4g} (bare base) -> {each['adapter']:.4g}"))


def _named(name: str, metric: Metric) -> Given:
    if isinstance(metric, str):
        return {"type": metric, "name": name}

    def named(answer: str, expected: str) -> float:
        return metric(answer, expected)

    named.__name__, named.__doc__ = name, metric.__doc__
    return named
