"""Shows the quickstart: the training as it runs, then its results."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from lamina.api.terminal import TrainingView, duration
from lamina.cli.output import Bars, err, notify, out, print_json
from lamina.quickstart.run import EVAL_ROWS, Quickstart, quickstart


def run_quickstart(folder: Path | None, model: str, seed: int, as_json: bool) -> None:
    """Runs the quickstart and prints its result."""
    err.print("[bold]lamina quickstart[/bold]: trains a small model to turn support requests into strict JSON records")
    with TrainingView(err) as view, Bars() as bars:
        result = quickstart(folder, model=model, seed=seed, on_event=view, notify=notify, progress=bars.update)
    if as_json:
        print_json(result.as_json())
    else:
        _print(result)


def _print(result: Quickstart) -> None:
    table = Table("on 100 unseen requests" if EVAL_ROWS == 100 else "on unseen requests", "base model", "adapter")
    table.add_row("exact match", f"{result.base_exact_match:.0%}", f"{result.exact_match:.0%}")
    table.add_row("valid records", f"{result.base_valid_json:.0%}", f"{result.valid_json:.0%}")
    out.print(table)
    for sample in result.samples:
        out.print(f"[bold]request[/bold]   {escape(sample.request)}")
        base = " ".join(sample.base.split())
        out.print(f"  base     [dim]{escape(base[:160])}{'...' if len(base) > 160 else ''}[/dim]")
        right = sample.adapter == sample.expected
        out.print(f"  adapter  [{'green' if right else 'red'}]{escape(sample.adapter)}[/]")
    out.print(f"\n{escape(result.certificate.line())}")
    out.print(f"training took {duration(result.training_seconds)}")
    out.print("\n[bold]Files[/bold]")
    for name, path in (
        ("data", result.folder / "data"),
        ("config", result.folder / "config.yaml"),
        ("run", result.run.path),
        ("adapter", result.run.adapter),
        ("merged model", result.merged),
    ):
        out.print(f"  {name:<13} {escape(str(path))}")
    out.print("\n[bold]Next[/bold]")
    out.print(f"  lamina chat {escape(str(result.run.path))}")
    config = escape(str(result.folder / "config.yaml"))
    out.print(f"  lamina train {config} data.train=YOUR.jsonl data.eval=0.1 output_dir=runs/mine")
