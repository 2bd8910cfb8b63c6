"""Runs `lamina train` in this process, and displays the run from its events."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import TracebackType

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lamina.cli.failures import tracebacks_in
from lamina.cli.output import err, notify, print_json, stop
from lamina.config import Config, load_config
from lamina.distributed.failure import LostRankError
from lamina.distributed.member import Silenced, member
from lamina.distributed.ranks import restarts_left
from lamina.errors import ConfigError, Interrupted, LaminaError
from lamina.runs import Run, events
from lamina.runs.events import Event
from lamina.runs.summary import Summary

# Minimum time between two lines of progress if stderr is not a terminal, such as in a log file.
LINE_SECONDS = 15.0
_GIB = 2**30


def train_here(config: str, overrides: list[str], resume: bool, as_json: bool) -> None:
    """Trains in this process, which may be one of several that a launcher has started."""
    try:
        with member() as world:
            checked = load_config(config, overrides)
            from lamina.training.loop import train as train_run

            try:
                with TrainingView() as view, tracebacks_in(Path(checked.output_dir)):
                    run = train_run(checked, view, resume=resume, world=world)
            except KeyboardInterrupt:
                raise stopped_at_once(checked) from None
    except Silenced as error:
        raise typer.Exit(error.exit_code) from None
    except LaminaError as error:
        final = isinstance(error, ConfigError | Interrupted) and not isinstance(error, LostRankError)
        if final or not restarts_left():
            raise
        notify(f"{error} Starting again ...")
        raise typer.Exit(error.exit_code) from None
    if world is not None and not world.is_first:
        return
    summary = run.summary
    assert summary is not None, "a run that is finished has one"
    if as_json:
        print_json(summary.as_json())
        return
    print_summary(summary)
    err.print(f"  next    lamina chat {escape(str(run.path))}")


class TrainingView:
    """Displays events as a report, a progress bar and lines. As a context manager, it always ends the bar."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=err,
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
            stop(self._progress)

    def __call__(self, event: Event) -> None:
        """Displays one event."""
        match event:
            case events.Note():
                err.print(f"[dim]{escape(event.message)}[/dim]")
            case events.Started():
                self._start(event)
            case events.FirstExample():
                _show_example(event)
            case events.Step():
                self._step(event)
            case events.Progress():
                if self._task is not None:
                    description = f"evaluating {event.what} {event.done}/{event.total}"
                    self._progress.update(self._task, description=description)
            case events.Evaluation():
                best = "  (best so far)" if event.best_step == event.step else ""
                what = {"base": "bare base", "start": "before training"}.get(event.of, f"step {event.step}")
                err.print(f"  eval loss {event.eval_loss:.4f}  {what}{best}")
            case events.Interrupted():
                err.print(f"  {event.signal}: checkpoint saved at step {event.step}")
            case events.Finished():
                stop(self._progress)
            case _:
                pass

    def _start(self, event: events.Started) -> None:
        err.print("[bold]Data[/bold]")
        for line in event.data_report:
            err.print(Text(f"  {line}", style="yellow" if line.startswith("warning:") else ""), soft_wrap=True)
        share = event.trainable_parameters / event.total_parameters
        checkpointing = ", gradient checkpointing" if event.gradient_checkpointing else ""
        checkpointing += " (selective)" if event.gradient_checkpointing == "selective" else ""
        err.print("[bold]Training[/bold]")
        err.print(
            f"  {event.trainable_parameters:,} of {event.total_parameters:,} parameters ({share:.2%}) on "
            f"{event.modules} modules; base in {event.dtype} on {event.device}{checkpointing}"
        )
        left = event.total_steps - event.step
        err.print(f"  {left} steps to go, about {duration(event.estimated_seconds)} at the measured speed")
        self._total = event.total_steps
        if err.is_terminal:
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
        if err.is_terminal:
            if self._task is not None:
                self._progress.update(self._task, completed=event.step, description="training", facts=facts)
        elif time.monotonic() - self._last_line > LINE_SECONDS or event.step == self._total:
            self._last_line = time.monotonic()
            err.print(f"  step {event.step}/{self._total}  {facts}", soft_wrap=True)


def _show_example(event: events.FirstExample) -> None:
    text = Text("  ")
    for segment in event.segments:
        text.append(segment.text.replace("\n", "\n  "), "green" if segment.supervised else "dim")
    err.print(Text("Example (").append("green", "green").append(" is in the loss, the rest is only context)"))
    err.print(text)


def stopped_at_once(config: Config) -> Interrupted:
    """Returns the error for a second Ctrl-C, or for one before the first step."""
    run = Run(Path(config.output_dir))
    if not run.begun:
        return Interrupted("stopped before the run started. Go on with: the same command again")
    command = run.resume_command
    message = f"stopped immediately. Go on from the last checkpoint with: {command}"
    return Interrupted(message, run=str(run.path), resume=command)


def print_summary(summary: Summary) -> None:
    """Prints the summary of a finished run."""
    s = summary
    err.print("[bold green]Done[/bold green]")
    if s.eval_loss is not None and s.eval_loss_first is not None:
        change = s.eval_loss / s.eval_loss_first - 1
        err.print(f"  eval loss {s.eval_loss_first:.4f} (bare base) -> {s.eval_loss:.4f} ({change:+.1%})")
    err.print(f"  train loss {s.train_loss_first:.4f} -> {s.train_loss_last:.4f} in {s.steps} steps")
    ranks = [s.figures.get(f"ranks_{which}") for which in ("at_start", "kept", "target")]
    if None not in ranks:
        err.print("  ranks {:,} -> {:,} (budget {:,})".format(*ranks))
    speed = f"{s.tokens_per_second:,.0f} tokens/s, " if s.tokens_per_second else ""
    err.print(f"  {s.tokens:,} tokens, {speed}peak memory {s.peak_memory_bytes / _GIB:.1f} GiB")
    err.print(f"  adapter {escape(s.adapter)}")
    err.print(f"  digest  {s.adapter_digest}")


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
