"""The results of a comparison, as plain data and as a self-contained HTML page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lamina import files, pages
from lamina.evaluation.score import Score

_WIDTH, _HEIGHT, _MARGIN = 520, 320, 52
_STYLE = """
th, td { text-align: right } th:first-child, td:first-child { text-align: left }
td.best { font-weight: 700 } tr.failed td { color: #a33 } tr.out td { color: #888 }
"""


@dataclass(frozen=True)
class BaseFigures:
    """The results of the bare base on the same data.

    Attributes:
        stored: How the base is quantized, such as `4 bits (nf4)`; empty if it is not.
        eval_loss, score, general_loss: As for a candidate.
    """

    stored: str = ""
    eval_loss: float | None = None
    score: Score | None = None
    general_loss: float | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of one candidate. Results are None until they are known.

    Attributes:
        name: The candidate's name.
        method: The name of its method.
        changes: How its configuration differs from the comparison's.
        notes: Notes on settings of the comparison's configuration that its method does not have.
        state: `waiting`, `done`, `failed`, or `left out` by successive halving.
        error: Why it failed.
        run: Its run directory.
        share_of_steps: 1, or the share of the rung after which it was left out.
        steps: Number of optimizer steps.
        learning_rate: Peak learning rate.
        trainable_parameters: Number of trained parameters.
        total_parameters: Number of parameters of the model with the adapter.
        adapter_bytes: Size of the adapter's tensor file.
        adapter_digest: Digest of the adapter.
        peak_memory_bytes: Peak memory of the training process.
        step_seconds: Median time of a step.
        train_loss: Loss of the last step.
        eval_loss: Evaluation loss of the saved adapter.
        loss_type: The name of its loss.
        accuracy: Share of the evaluation pairs whose chosen answer it prefers.
        margin: Mean difference between the rewards of chosen and rejected answers.
        score: Score of the answers on the test rows.
        general_loss: Loss on the general text with the adapter.
        base: Results of the base without the adapter.
    """

    name: str
    method: str
    changes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    state: str = "waiting"
    error: str | None = None
    run: str | None = None
    share_of_steps: float = 1.0
    steps: int | None = None
    learning_rate: float | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    adapter_bytes: int | None = None
    adapter_digest: str | None = None
    peak_memory_bytes: int | None = None
    step_seconds: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    loss_type: str | None = None
    accuracy: float | None = None
    margin: float | None = None
    score: Score | None = None
    general_loss: float | None = None
    base: BaseFigures = BaseFigures()

    @property
    def share(self) -> float | None:
        """The share of trained parameters."""
        if self.trainable_parameters is None or not self.total_parameters:
            return None
        return self.trainable_parameters / self.total_parameters


@dataclass(frozen=True)
class Comparison:
    """The outcomes of all candidates.

    Attributes:
        settings: What was measured in addition to the evaluation loss, the rungs as shares of the steps, and where
            candidates were trained: the executor, how many at once, and the threads and GPUs of each.
        outcomes: One per candidate, in the given order.
    """

    settings: dict[str, Any]
    outcomes: list[Outcome]

    @property
    def bases(self) -> list[BaseFigures]:
        """The results of the bare base, for each way in which candidates quantize it."""
        found: dict[str, BaseFigures] = {}
        for outcome in self.outcomes:
            if outcome.base != BaseFigures(outcome.base.stored):
                found.setdefault(outcome.base.stored, outcome.base)
        return list(found.values()) or [BaseFigures()]

    @property
    def failed(self) -> list[Outcome]:
        """The outcomes of failed candidates."""
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {
            "settings": self.settings,
            "base": _base_json(self.bases[0]),
            "candidates": [
                asdict(outcome)
                | {"share": outcome.share, "score": _score_json(outcome.score), "base": _base_json(outcome.base)}
                for outcome in self.outcomes
            ],
        }


def _base_json(base: BaseFigures) -> dict[str, Any]:
    return asdict(base) | {"score": _score_json(base.score)}


def _score_json(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    low, high = score.interval
    return {"correct": score.correct, "rows": score.rows, "share": score.share, "low": low, "high": high}


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        title: Its head.
        text: A candidate's cell.
        best: What the best candidate has least of; None where there is no best.
    """

    title: str
    text: Callable[[Outcome], str]
    best: Callable[[Outcome], float | None] | None = None


def columns(comparison: Comparison) -> list[Column]:
    """Lists the table's columns, without columns that have no results."""
    outcomes, bases = comparison.outcomes, comparison.bases
    found = [
        Column("candidate", lambda o: o.name),
        Column("trained", lambda o: _form(o.trainable_parameters, "{:,}")),
        Column("share", lambda o: _form(o.share, "{:.3%}")),
        Column("adapter MB", lambda o: _form(o.adapter_bytes, "{:.2f}", 1e6), lambda o: o.adapter_bytes),
        Column("peak GiB", lambda o: _form(o.peak_memory_bytes, "{:.2f}", 2**30), lambda o: o.peak_memory_bytes),
        Column("s a step", lambda o: _form(o.step_seconds, "{:.3g}"), lambda o: o.step_seconds),
        Column("rate", lambda o: _form(o.learning_rate, "{:.2g}")),
    ]
    if any(o.eval_loss is not None for o in outcomes):
        alike = len({_loss_settings(o) for o in outcomes if o.loss_type}) < 2  # different losses have no best
        best = (lambda o: o.eval_loss) if alike else None
        found.append(Column("eval loss", lambda o: _form(o.eval_loss, "{:.4f}"), best))
    if any(o.accuracy is not None for o in outcomes):
        found.append(
            Column(
                "preferred",
                lambda o: _form(o.accuracy, "{:.1%}"),
                lambda o: None if o.accuracy is None else -o.accuracy,
            )
        )
    if any(o.margin is not None for o in outcomes):
        found.append(Column("margin", lambda o: _form(o.margin, "{:.3f}")))
    if any(o.score for o in outcomes):
        found.append(
            Column("right (95%)", lambda o: score_text(o.score), lambda o: -o.score.share if o.score else None)
        )
    if any(o.general_loss is not None for o in outcomes):
        before = f"base {_form(bases[0].general_loss, '{:.4f}')}" if len(bases) == 1 else "beside its base"
        found.append(Column(f"general loss ({before})", _general, lambda o: o.general_loss))
    found.append(Column("", state_text))
    return found


def _loss_settings(outcome: Outcome) -> tuple[object, ...]:
    """What decides which function a candidate's loss is: a DPO loss with another beta has another scale."""
    given = {key: value for key, value in outcome.changes.items() if key.startswith("loss.") and key != "loss.type"}
    return outcome.loss_type, *sorted(given.items())


def best_in(column: Column, comparison: Comparison) -> str | None:
    """Finds the name of the best finished candidate in a column."""
    if column.best is None:
        return None
    values = {o.name: column.best(o) for o in comparison.outcomes if o.state == "done"}
    known = {name: value for name, value in values.items() if value is not None}
    return min(known, key=lambda name: known[name]) if known else None


def score_text(score: Score | None) -> str:
    """Formats a score with its interval, such as `62.0% (48-74)`."""
    if score is None:
        return ""
    low, high = score.interval
    return f"{score.share:.1%} ({100 * low:.0f}-{100 * high:.0f})"


def state_text(outcome: Outcome) -> str:
    """Formats a candidate's state; empty if it is done."""
    if outcome.state == "left out":
        return f"left out after {outcome.share_of_steps:.0%}"
    return "" if outcome.state == "done" else outcome.state


def write_html(comparison: Comparison, path: Path) -> None:
    """Writes the table and the plots as one page."""
    heads = columns(comparison)
    winners = [best_in(column, comparison) for column in heads]
    rows = []
    for outcome in comparison.outcomes:
        cells = "".join(
            f"<td{' class=best' if outcome.name == winner else ''}>{html.escape(column.text(outcome))}</td>"
            for column, winner in zip(heads, winners, strict=True)
        )
        kind = {"failed": " class=failed", "left out": " class=out"}.get(outcome.state, "")
        rows.append(f"<tr{kind}>{cells}</tr>")
    remarks = [f"{o.name}: {text}" for o in comparison.outcomes for text in [*o.notes, *([o.error] if o.error else [])]]
    bare = "<br>".join(html.escape(_base_text(base)) for base in comparison.bases)
    body = (
        f"<h1>lamina compare</h1><p>{bare}</p>{pages.table((column.title for column in heads), rows)}"
        f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in remarks)}</ul>"
        f"<div class=plots>{''.join(_plots(comparison))}</div>"
    )
    files.write_text(path, pages.page("lamina compare", body, _STYLE))


def _plots(comparison: Comparison) -> list[str]:
    done = [outcome for outcome in comparison.outcomes if outcome.state == "done"]
    known = [o for o in done if o.eval_loss is not None]
    plots = [
        _scatter(known, "eval loss by trained parameters", lambda o: o.trainable_parameters, _loss, logarithmic=True),
        _scatter(known, "eval loss by seconds a step", lambda o: o.step_seconds, _loss),
        _scatter(known, "eval loss by peak GiB", lambda o: (o.peak_memory_bytes or 0) / 2**30, _loss),
        _scatter(
            [o for o in known if o.general_loss is not None],
            "general loss (up is forgetting) by eval loss",
            _loss,
            lambda o: o.general_loss,
        ),
        _scatter(
            [o for o in done if o.score],
            "share of right answers by trained parameters",
            lambda o: o.trainable_parameters,
            lambda o: o.score.share if o.score else None,
            logarithmic=True,
            spread=lambda o: o.score.interval if o.score else None,
        ),
    ]
    return [plot for plot in plots if plot]


def _scatter(
    outcomes: Sequence[Outcome],
    title: str,
    x_of: Callable[[Outcome], float | None],
    y_of: Callable[[Outcome], float | None],
    *,
    logarithmic: bool = False,
    spread: Callable[[Outcome], tuple[float, float] | None] = lambda outcome: None,
) -> str:
    """Draws a scatter plot as SVG, with a labeled point for each candidate that has both values."""
    points = [(o, x, y) for o in outcomes if (x := x_of(o)) is not None and (y := y_of(o)) is not None]
    if not points:
        return ""
    scale = (lambda value: math.log10(max(value, 1.0))) if logarithmic else float
    bounds = [b for o, _, _ in points if (pair := spread(o)) for b in pair]
    xs, ys = [scale(x) for _, x, _ in points], [y for _, _, y in points] + bounds
    across = _axis(min(xs), max(xs), _MARGIN, _WIDTH - 110)
    up = _axis(min(ys), max(ys), _HEIGHT - _MARGIN, 34)
    parts = [f'<text x="{_MARGIN}" y="16" font-weight="700">{html.escape(title)}</text>']
    parts.append(
        f'<path d="M{_MARGIN} 26V{_HEIGHT - _MARGIN + 8}H{_WIDTH - 90}" fill="none" stroke="#9aa3b2"/>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 22}">{_tick(min(x for _, x, _ in points))}</text>'
        f'<text x="{_WIDTH - 90}" y="{_HEIGHT - 22}" text-anchor="end">{_tick(max(x for _, x, _ in points))}</text>'
        f'<text x="4" y="{_HEIGHT - _MARGIN}">{_tick(min(ys))}</text><text x="4" y="38">{_tick(max(ys))}</text>'
    )
    places = [(across(scale(x)), up(y)) for _, x, y in points]
    labels = _labels(places, [outcome.name for outcome, _, _ in points])
    for (outcome, _, _), (left, top), label in zip(points, places, labels, strict=True):
        ends = spread(outcome)
        if ends:
            parts.append(f'<path d="M{left:.1f} {up(ends[0]):.1f}V{up(ends[1]):.1f}" stroke="#8fb0e6"/>')
        parts.append(f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4.5" fill="#2f6fd6"/>')
        parts.append(label)
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _labels(places: Sequence[tuple[float, float]], names: Sequence[str]) -> list[str]:
    """Places a label next to each point as SVG, without overlaps if there is space nearby."""
    beyond_the_axis = (-math.inf, -math.inf, _MARGIN - 2.0, math.inf)
    taken = [beyond_the_axis, *((left - 4, top - 4, left + 4, top + 4) for left, top in places)]
    labels = []
    for (left, top), name in zip(places, names, strict=True):
        width, height = 6.6 * len(name), 11
        spots = [(x, top + y) for y in (4, -7, 15, -18, 26) for x in (left + 8, left - 8 - width)]
        boxes = [(x, y - height + 2, x + width, y + 2) for x, y in spots]
        free = [n for n, box in enumerate(boxes) if not any(_overlap(box, other) for other in taken)]
        chosen = free[0] if free else 0
        taken.append(boxes[chosen])
        x, y = spots[chosen]
        labels.append(f'<text x="{x:.1f}" y="{y:.1f}">{html.escape(name)}</text>')
    return labels


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _axis(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)


def _loss(outcome: Outcome) -> float | None:
    return outcome.eval_loss


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _form(value: float | None, form: str, unit: float = 1) -> str:
    if value is None:
        return ""
    return form.format(value if unit == 1 else value / unit)


def _general(outcome: Outcome) -> str:
    after, before = outcome.general_loss, outcome.base.general_loss
    return "" if after is None or before is None else f"{after:.4f} ({after - before:+.4f})"


def _base_text(base: BaseFigures) -> str:
    known = [
        f"eval loss {base.eval_loss:.4f}" if base.eval_loss is not None else "",
        f"right {score_text(base.score)}" if base.score else "",
        f"general loss {base.general_loss:.4f}" if base.general_loss is not None else "",
    ]
    name = f"Bare base, {base.stored}" if base.stored else "Bare base"
    return f"{name}: {', '.join(filter(None, known)) or 'not evaluated'}."
