"""Displays a training run from its events, in a terminal or a log file."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lamina.runs import events
from lamina.runs.events import Event
from lamina.runs.summary import losses_of_sets

# Minimum time between two lines of progress if stderr is not a terminal, such as in a log file.
LINE_SECONDS = 15.0
_GIB = 2**30


class TrainingView:
    """Displays events as a report, a progress bar and lines. As a context manager, it always ends the bar.

    Args:
        console: Where to; by default standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._total = 0
        self._last_line = 0.0
        self._speed = 0.0

    def __enter__(self) -> TrainingView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # the terminal has gone
            self._stop()

    def __call__(self, event: Event) -> None:
        """Displays one event."""
        match event:
            case events.Note():
                self._console.print(f"[dim]{escape(event.message)}[/dim]")
            case events.Started():
                self._start(event)
            case events.FirstExample():
                self._show_example(event)
            case events.Step():
                self._step(event)
            case events.Progress():
                if self._task is not None:
                    description = f"evaluating {event.what} {event.done}/{event.total}"
                    self._progress.update(self._task, description=description)
            case events.Evaluation():
                best = "  (best so far)" if event.best_step == event.step else ""
                what = {"base": "bare base", "start": "before training"}.get(event.of, f"step {event.step}")
                by_set = "".join(f"  {escape(name)} {loss:.4f}" for name, loss in losses_of_sets(event.metrics).items())
                self._console.print(
                    f"  eval loss {event.eval_loss:.4f}{by_set and f' ({by_set.strip()})'}  {what}{best}"
                )
            case events.Interrupted():
                self._console.print(f"  {event.signal}: checkpoint saved at step {event.step}")
            case events.Finished():
                self._stop()
            case _:
                pass

    def _start(self, event: events.Started) -> None:
        self._console.print("[bold]Data[/bold]")
        for line in event.data_report:
            self._console.print(
                Text(f"  {line}", style="yellow" if line.startswith("warning:") else ""), soft_wrap=True
            )
        share = event.trainable_parameters / event.total_parameters
        checkpointing = ", gradient checkpointing" if event.gradient_checkpointing else ""
        checkpointing += " (selective)" if event.gradient_checkpointing == "selective" else ""
        self._console.print("[bold]Training[/bold]")
        self._console.print(
            f"  {event.trainable_parameters:,} of {event.total_parameters:,} parameters ({share:.2%}) on "
            f"{event.modules} modules; base in {event.dtype} on {event.device}{checkpointing}"
        )
        left = event.total_steps - event.step
        self._console.print(f"  {left} steps to go, about {duration(event.estimated_seconds)} at the measured speed")
        self._total = event.total_steps
        if self._console.is_terminal:
            self._progress.start()
        self._task = self._progress.add_task("training", total=event.total_steps, completed=event.step, facts="")

    def _step(self, event: events.Step) -> None:
        now = event.tokens / event.seconds
        self._speed = now if not self._speed else 0.8 * self._speed + 0.2 * now
        left = (self._total - event.step) * event.tokens * event.step_seconds / event.seconds / self._speed
        facts = (
            f"loss {event.loss:.4f}  {self._speed:,.0f} tokens/s  ETA {duration(left)}  "
            f"{event.memory_bytes / _GIB:.1f} GiB"
        )
        if self._console.is_terminal:
            if self._task is not None:
                self._progress.update(self._task, completed=event.step, description="training", facts=facts)
        elif time.monotonic() - self._last_line > LINE_SECONDS or event.step == self._total:
            self._last_line = time.monotonic()
            self._console.print(f"  step {event.step}/{self._total}  {facts}", soft_wrap=True)

    def _show_example(self, event: events.FirstExample) -> None:
        text = Text("  ")
        for segment in event.segments:
            text.append(segment.text.replace("\n", "\n  "), "green" if segment.supervised else "dim")
        self._console.print(Text("Example (").append("green", "green").append(" is in the loss, the rest is context)"))
        self._console.print(text)

    def _stop(self) -> None:
        if self._progress.live.is_started:  # otherwise, rich would print an empty line
            self._progress.stop()


def duration(seconds: float) -> str:
    """Formats a duration.

    >>> duration(95.2), duration(7260), duration(0.4)
    ('1 min 35 s', '2 h 1 min', '0 s')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
