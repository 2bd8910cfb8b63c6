"""Commands that check: `lamina verify` and `lamina doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lamina.cli.output import JsonFlag, Overrides, out, print_json


def verify(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="A YAML file; by default the quickstart's model and data."),
    ] = None,
    overrides: Overrides = None,
    nproc: Annotated[
        int, typer.Option(min=1, help="Also compare training in so many processes with training in one.")
    ] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Verify on your own model and data that packing, accumulation, resuming, merging and other shortcuts are exact."""
    from lamina.config import load_config

    changes = overrides or []
    if config is not None and "=" in config and not Path(config).exists():
        config, changes = None, [config, *changes]  # overrides of the quickstart's configuration
    checked = None if config is None else load_config(config, changes)
    from lamina.cli.verification import print_event, print_verification
    from lamina.verification.verify import verify as run_verification

    result = run_verification(checked, print_event, overrides=[] if checked else changes, nproc=nproc)
    if as_json:
        print_json(result.as_json())
    else:
        print_verification(result)
    if not result.passed:
        raise typer.Exit(1)


def doctor(as_json: JsonFlag = False) -> None:
    """Report what this machine offers, what is slow on it, and why."""
    from lamina.doctor import diagnose

    findings = diagnose()
    if as_json:
        print_json({"findings": [finding.as_json() for finding in findings]})
        return
    marks = {"ok": "[green]ok[/green]", "slow": "[yellow]slow[/yellow]", "missing": "[dim]missing[/dim]"}
    table = Table("", "what", "found", box=None, padding=(0, 2))
    for finding in findings:
        advice = f"\n[dim]{escape(finding.advice)}[/dim]" if finding.advice else ""
        table.add_row(marks[finding.level], finding.name, escape(finding.value) + advice)
    out.print(table)
