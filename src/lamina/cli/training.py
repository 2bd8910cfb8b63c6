"""Shows a training run as its events come in."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lamina.cli.output import err, stop
from lamina.config import Config
from lamina.errors import Interrupted
from lamina.runs import Run

# Between two lines of progress where stderr is no terminal, such as in a log file.
LINE_SECONDS = 15.0
_GIB = 2**30


class TrainingView:
    """Turns events into a report, a progress bar and lines. Used as a context, so that the bar always ends."""

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

    def __call__(self, event: Any) -> None:
        """Shows one event."""
        show = getattr(self, f"_on_{event.kind}", None)
        if show is not None:
            show(event.step, event.data)

    def _on_note(self, step: int, data: dict[str, Any]) -> None:
        err.print(f"[dim]{escape(data['message'])}[/dim]")

    def _on_start(self, step: int, data: dict[str, Any]) -> None:
        err.print("[bold]Data[/bold]")
        for line in data["data_report"]:
            err.print(Text(f"  {line}", style="yellow" if line.startswith("warning:") else ""), soft_wrap=True)
        share = data["trainable_parameters"] / data["total_parameters"]
        recompute = data["gradient_checkpointing"]
        checkpointing = ", gradient checkpointing" if recompute else ""
        checkpointing += " (selective)" if recompute == "selective" else ""
        err.print("[bold]Training[/bold]")
        err.print(
            f"  {data['trainable_parameters']:,} of {data['total_parameters']:,} parameters ({share:.2%}) on "
            f"{data['modules']} modules; base in {data['dtype']} on {data['device']}{checkpointing}"
        )
        left = data["total_steps"] - step
        err.print(f"  {left} steps to go, about {duration(data['estimated_seconds'])} at the speed just measured")
        self._total = data["total_steps"]
        if err.is_terminal:
            self._progress.start()
        self._task = self._progress.add_task("training", total=data["total_steps"], completed=step, facts="")

    def _on_example(self, step: int, data: dict[str, Any]) -> None:
        text = Text("  ")
        for segment in data["segments"]:
            text.append(segment["text"].replace("\n", "\n  "), "green" if segment["supervised"] else "dim")
        err.print(Text("Example (").append("green", "green").append(" is learned, the rest is only read)"))
        err.print(text)

    def _on_step(self, step: int, data: dict[str, Any]) -> None:
        now = data["tokens"] / data["seconds"]
        self._speed = now if not self._speed else 0.8 * self._speed + 0.2 * now
        left = (self._total - step) * data["tokens"] * data["step_seconds"] / data["seconds"] / self._speed
        facts = (
            f"loss {data['loss']:.4f}  {self._speed:,.0f} tokens/s  ETA {duration(left)}  "
            f"{data['memory_bytes'] / _GIB:.1f} GiB"
        )
        if err.is_terminal:
            if self._task is not None:
                self._progress.update(self._task, completed=step, description="training", facts=facts)
        elif time.monotonic() - self._last_line > LINE_SECONDS or step == self._total:
            self._last_line = time.monotonic()
            err.print(f"  step {step}/{self._total}  {facts}", soft_wrap=True)

    def _on_progress(self, step: int, data: dict[str, Any]) -> None:
        if self._task is not None:
            self._progress.update(self._task, description=f"evaluating {data['what']} {data['done']}/{data['total']}")

    def _on_eval(self, step: int, data: dict[str, Any]) -> None:
        best = "  (best so far)" if data.get("best_step") == step else ""
        what = "bare base" if data["of"] == "base" else f"step {step}"
        err.print(f"  eval loss {data['eval_loss']:.4f}  {what}{best}")

    def _on_end(self, step: int, data: dict[str, Any]) -> None:
        stop(self._progress)

    def _on_interrupted(self, step: int, data: dict[str, Any]) -> None:
        err.print(f"  {data['signal']}: checkpoint saved at step {step}")


def stopped_at_once(config: Config) -> Interrupted:
    """What a second Ctrl-C, or one before the first step, is for the user."""
    run = Run(Path(config.output_dir))
    if not run.begun:
        return Interrupted("stopped before the run began. Go on with: the same command again")
    command = run.resume_command
    message = f"stopped at once. Go on from the last checkpoint with: {command}"
    return Interrupted(message, run=str(run.path), resume=command)


def print_summary(summary: dict[str, Any]) -> None:
    """The figures of a finished run, for people."""
    s = summary
    err.print("[bold green]Done[/bold green]")
    if s["eval_loss"] is not None:
        change = s["eval_loss"] / s["eval_loss_first"] - 1
        err.print(f"  eval loss {s['eval_loss_first']:.4f} (bare base) -> {s['eval_loss']:.4f} ({change:+.1%})")
    err.print(f"  train loss {s['train_loss_first']:.4f} -> {s['train_loss_last']:.4f} in {s['steps']} steps")
    if "ranks_kept" in s:
        err.print(f"  ranks {s['ranks_at_start']:,} -> {s['ranks_kept']:,}, the budget being {s['ranks_target']:,}")
    speed = f"{s['tokens_per_second']:,.0f} tokens/s, " if s["tokens_per_second"] else ""
    err.print(f"  {s['tokens']:,} tokens, {speed}peak memory {s['peak_memory_bytes'] / _GIB:.1f} GiB")
    err.print(f"  adapter {escape(s['adapter'])}")
    err.print(f"  digest  {s['adapter_digest']}")


def duration(seconds: float) -> str:
    """`95` -> `1 min 35 s`.

    >>> duration(95.2), duration(7260), duration(0.4)
    ('1 min 35 s', '2 h 1 min', '0 s')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
