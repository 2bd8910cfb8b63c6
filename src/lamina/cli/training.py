"""What `lamina train` says at the end of a run."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from lamina.cli.output import err
from lamina.config import Config
from lamina.errors import Interrupted
from lamina.runs import Run
from lamina.runs.summary import Summary, losses_of_sets

_GIB = 2**30


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
        first = losses_of_sets(s.eval_metrics_first)
        for name, loss in losses_of_sets(s.eval_metrics).items():
            if name in first:
                err.print(f"    {escape(name)} {first[name]:.4f} -> {loss:.4f} ({loss / first[name] - 1:+.1%})")
    err.print(f"  train loss {s.train_loss_first:.4f} -> {s.train_loss_last:.4f} in {s.steps} steps")
    ranks = [s.figures.get(f"ranks_{which}") for which in ("at_start", "kept", "target")]
    if None not in ranks:
        err.print("  ranks {:,} -> {:,} (budget {:,})".format(*ranks))
    speed = f"{s.tokens_per_second:,.0f} tokens/s, " if s.tokens_per_second else ""
    err.print(f"  {s.tokens:,} tokens, {speed}peak memory {s.peak_memory_bytes / _GIB:.1f} GiB")
    err.print(f"  adapter {escape(s.adapter)}")
    err.print(f"  digest  {s.adapter_digest}")
