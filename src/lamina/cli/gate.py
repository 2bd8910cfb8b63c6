"""`lamina gate`: whether a candidate may take a champion's place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lamina.cli.output import Bars, JsonFlag, ModelOption, notify, out, print_json

EXIT_CODES = {"promote": 0, "hold": 1, "not_enough_rows": 3}


def gate(
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="A run, an adapter folder or a version.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="SUBJECT", help="The champion: a run, an adapter, a version, a base, or `base` for its own."
        ),
    ],
    config: Annotated[Path, typer.Option("--gate", metavar="FILE", help="The gate's .yaml file.")],
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="A stored evaluation of the two; may be repeated. The rest is evaluated."),
    ] = None,
    general: Annotated[
        Path | None,
        typer.Option(
            help="General text (.txt, or .jsonl with text) to measure forgetting on; by default lamina's own."
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for the evaluation of what no --evaluation has; by default a new one in evaluations/.",
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(help="Folder for the record; by default gates/ beside --out, or beside the last evaluation."),
    ] = None,
    registry: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FOLDER",
            help="Where versions are found and the record is stored too; by default LAMINA_REGISTRY, or your own.",
        ),
    ] = None,
    model: ModelOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Decide whether a candidate may take a champion's place: promote (exit code 0), hold (1), not enough rows (3)."""
    from lamina.gate.run import run_gate

    with Bars() as bars:
        result = run_gate(
            candidate,
            against,
            config,
            evaluations=evaluation or [],
            general=general,
            model=model,
            out=folder,
            records=records,
            registry=registry,
            progress=bars.update,
            notify=notify,
        )
    if as_json:
        print_json(result.as_json())
    else:
        table = Table("check", "", "value (interval)", "limit", "rows needed", "")
        marks = {"passed": "[green]passed[/green]", "failed": "[red]failed[/red]", "not_enough_rows": "undecided"}
        for check in result.checks:
            value = "" if check.value is None else f"{check.value:.4g}"
            if check.low is not None and check.high is not None:
                value += f" ({check.low:.4g} to {check.high:.4g})"
            limit = "" if check.limit is None else f"{check.limit:g}"
            rows = "" if check.rows_needed is None else f"{check.rows_needed:,}"
            table.add_row(check.name, marks[check.state], value, limit, rows, check.note)
        out.print(table)
        for each in result.evaluations:
            out.print(f"evaluation: {each.path}", markup=False)
        out.print(f"record: {result.path}", markup=False)
        wanted = f" (some {result.rows_needed:,} are needed)" if result.rows_needed else ""
        final = {"promote": "PROMOTE", "hold": "HOLD", "not_enough_rows": f"NOT ENOUGH ROWS{wanted}"}
        out.print(final[result.verdict], markup=False)
    if code := EXIT_CODES[result.verdict]:
        raise typer.Exit(code)
