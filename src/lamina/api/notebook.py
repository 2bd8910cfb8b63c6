"""Displays a training run in a notebook: one output that is updated in place."""

from __future__ import annotations

import html
import time
from types import TracebackType
from typing import Any

from lamina import pages
from lamina.api.terminal import duration
from lamina.runs import events
from lamina.runs.events import Event
from lamina.runs.summary import losses_of_sets

# Seconds between two updates, since each is a message to the browser.
_EVERY = 0.25
_MOST_NOTES = 6


class NotebookView:
    """Displays a progress bar, the latest figures, the evaluations, and notes."""

    def __init__(self) -> None:
        from IPython.display import display  # there, if there is a notebook

        self._display: Any = display
        self._handle: Any = None
        self._notes: list[str] = []
        self._evaluations: list[tuple[str, str]] = []
        self._state = "preparing"
        self._total = 0
        self._step = 0
        self._facts = ""
        self._last = 0.0
        self._speed = 0.0

    def __enter__(self) -> NotebookView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._state = "interrupted" if issubclass(kind, KeyboardInterrupt) else "stopped"
        self._show(at_once=True)

    def __call__(self, event: Event) -> None:
        """Displays one event."""
        match event:
            case events.Note():
                self._notes.append(event.message)
            case events.Started():
                self._state, self._total, self._step = "training", event.total_steps, event.step
                self._notes += [line for line in event.data_report if line.startswith("warning:")]
                self._facts = f"about {duration(event.estimated_seconds)} to go"
            case events.Step():
                now = event.tokens / event.seconds
                self._speed = now if not self._speed else 0.8 * self._speed + 0.2 * now
                left = (self._total - event.step) * event.tokens * event.step_seconds / event.seconds / self._speed
                self._step = event.step
                self._facts = f"loss {event.loss:.4f}, {self._speed:,.0f} tokens/s, {duration(left)} to go"
            case events.Progress():
                self._state = f"evaluating {event.what} {event.done}/{event.total}"
            case events.Evaluation():
                self._state = "training"
                what = {"base": "bare base", "start": "before training"}.get(event.of, f"step {event.step}")
                losses = {"": event.eval_loss, **losses_of_sets(event.metrics)}
                self._evaluations.append((what, "  ".join(f"{name} {loss:.4f}" for name, loss in losses.items())))
            case events.Finished():
                self._state = "finished"
                self._facts = f"adapter in {event.summary.adapter}"
            case _:
                return
        self._show(at_once=isinstance(event, events.Finished | events.Evaluation))

    def _show(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if not at_once and now - self._last < _EVERY:
            return
        self._last = now
        shown = _Html(self._html())
        if self._handle is None:
            self._handle = self._display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def _html(self) -> str:
        bar = f"<progress value={self._step} max={self._total or 1} style='width:18em'></progress>"
        head = f"<div>{bar} {self._step}/{self._total or '?'} <b>{html.escape(self._state)}</b> "
        parts = [f"{head}{html.escape(self._facts)}</div>"]
        if self._evaluations:
            rows = [pages.row(cells) for cells in self._evaluations]
            parts.append(pages.table(("evaluated", "eval loss"), rows))
        parts += [f"<div style='color:#667'>{html.escape(note)}</div>" for note in self._notes[-_MOST_NOTES:]]
        return "".join(parts)


class _Html:
    """HTML for a notebook, and nothing but its kind as text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "<progress of lamina.train>"

    def _repr_html_(self) -> str:
        return self._text
