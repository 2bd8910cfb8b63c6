"""What a run shows of itself: how far it is, its curves, and a table over its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lamina.charts import Chart, Line, Table
from lamina.errors import ConfigError, Problem
from lamina.runs.events import Evaluation, Event, Step
from lamina.runs.summary import LOSS_OF_SET, Summary, losses_of_sets

# Without evaluations, a table shows about so many of the logged steps.
_MOST_ROWS = 20


def plot_events(events: Sequence[Event], metric: str, title: str) -> Chart:
    """Draws a metric over the steps: `loss` with the evaluation loss beside it, or another of a `Step` event.

    Raises:
        ConfigError: No event has the metric; the message lists those that there are.
    """
    steps, evaluations = _kinds(events)
    if metric == "loss":
        lines = loss_lines(events)
    else:
        ours = [each for each in evaluations if each.of == "adapter"]
        lines = [line for line in (_line(metric, steps, metric), _line(metric, ours, metric, marked=True)) if line.xs]
    if not lines:
        known = sorted({name for event in (*steps, *evaluations) for name in event.scalars()})
        fix = f"use one of {', '.join(['loss', *known])}" if known else "wait until it has trained a step"
        raise ConfigError(Problem("metric", f"{metric!r} is not a metric of this run", fix))
    return Chart(title, "step", metric, lines)


def tabulate(events: Sequence[Event]) -> Table:
    """Lists one row for each evaluation, or some of the logged steps if there is none."""
    steps, evaluations = _kinds(events)
    if not evaluations:
        every = max(1, len(steps) // _MOST_ROWS)
        chosen = [step for place, step in enumerate(steps) if place % every == 0 or place == len(steps) - 1]
        rows = [_step_row(step.step, [step]) for step in chosen]
        return Table(_columns(rows), rows)
    rows, last = [], 0
    for evaluation in evaluations:
        since = [step for step in steps if last < step.step <= evaluation.step]
        last = evaluation.step
        row = {**_step_row(evaluation.step, since), "eval_loss": evaluation.eval_loss, **evaluation.metrics}
        row["note"] = {"base": "bare base", "start": "before training"}.get(evaluation.of, "")
        if evaluation.best_step == evaluation.step:
            row["note"] = "best so far"
        rows.append(row)
    return Table(_columns(rows), rows)


def state_of(status: str | None, summary: Summary | None) -> str:
    """Says in a few words how far a run is: `finished, 12 steps, eval loss 2.1034 -> 0.4121`."""
    if summary is None:
        return status or "not started"
    if summary.eval_loss is None:
        return f"{status}, {summary.steps} steps"
    before = "" if summary.eval_loss_first is None else f"{summary.eval_loss_first:.4f} -> "
    return f"{status}, {summary.steps} steps, eval loss {before}{summary.eval_loss:.4f}"


def loss_lines(events: Sequence[Event], name: str = "") -> list[Line]:
    """Returns the losses of training and evaluation over the steps.

    Args:
        events: Of a run.
        name: The run's name, if there are several.
    """
    steps, evaluations = _kinds(events)
    lines = [_line(f"{name} training".strip(), steps, "loss")]
    lines.append(_line(f"{name} evaluation".strip(), evaluations, "eval_loss", marked=True))
    sets = dict.fromkeys(each for event in evaluations for each in losses_of_sets(event.metrics))
    lines += [_line(f"{name} on {each}".strip(), evaluations, f"{LOSS_OF_SET}{each}", marked=True) for each in sets]
    return [line for line in lines if line.xs]


def _kinds(events: Sequence[Event]) -> tuple[list[Step], list[Evaluation]]:
    return [e for e in events if isinstance(e, Step)], [e for e in events if isinstance(e, Evaluation)]


def _line(name: str, events: Sequence[Step | Evaluation], metric: str, *, marked: bool = False) -> Line:
    points = [(event.step, value) for event in events if (value := event.scalars().get(metric)) is not None]
    return Line(name, [x for x, _ in points], [y for _, y in points], marked)


def _step_row(step: int, since: Sequence[Step]) -> dict[str, Any]:
    tokens = sum(event.tokens for event in since)
    loss = sum(event.loss * event.tokens for event in since) / tokens if tokens else None
    last = since[-1] if since else None
    return {
        "step": step,
        "epoch": None if last is None else round(last.epoch, 2),
        "train_loss": loss,
        "learning_rate": None if last is None else last.learning_rate,
    }


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    named = list(dict.fromkeys(name for row in rows for name in row))
    return [name for name in named if any(row.get(name) not in (None, "") for row in rows)] or ["step"]
