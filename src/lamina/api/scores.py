"""Metrics of a finished run: functions of the user's over the answers of base model and adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lamina.evaluation.evaluate import evaluate
from lamina.evaluation.scorers import Given
from lamina.runs import Run
from lamina.runs.events import Note, OnEvent

Metric = str | Callable[..., float]


def measure_answers(run: Run, metrics: Sequence[Metric] | Mapping[str, Metric], tell: OnEvent) -> None:
    """Scores the answers to the evaluation rows, and records the means in the run's manifest (`run.scores`).

    Args:
        run: A finished run with evaluation rows.
        metrics: Functions of (answer, expected), or names of scorers; by name, or with their own names.
        tell: Told the results.

    Raises:
        ConfigError: The run has no evaluation rows, or a metric is no scorer.
        DataError: A metric raises, or returns something other than a number.
    """
    assert run.summary is not None, "the run is finished"
    step = run.summary.steps
    tell(Note(step, message="Generating answers for the metrics ..."))
    scorers = [_named(name, metric) for name, metric in metrics.items()] if isinstance(metrics, Mapping) else [*metrics]
    found = evaluate(run.path, score=scorers, notify=lambda message: tell(Note(step, message=message)))
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
