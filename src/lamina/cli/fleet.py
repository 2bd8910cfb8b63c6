"""`lamina fleet`: many runs, here or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamina.cli.output import JsonFlag, notify, print_json, print_table
from lamina.cli.placement import Cpus, Gpus, Jobs, On, Option, Retries, checked_placement, output_folder
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.fleet.fleet import FleetReport, Row

fleet = typer.Typer(help="Train many configurations, on this machine, on Ray or on Slurm.", no_args_is_help=False)

_GIB = 2**30


@fleet.callback()
def _fleet() -> None:
    """Train many configurations, on this machine, on Ray or on Slurm."""


@fleet.command()
def run(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG|KEY=VALUE", help="YAML files, and overrides for all of them."),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for all files and runs. By default runs/fleet, and the runs in their output_dir."
        ),
    ] = None,
    on: On = "local",
    jobs: Jobs = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    retries: Retries = 3,
    options: Option = None,
    as_json: JsonFlag = False,
) -> None:
    """Train several configurations and gather their results in a table. Run it again to resume."""
    from lamina.fleet.fleet import build_members, run_fleet

    where = output_folder(folder, "fleet")
    placement = checked_placement(on, jobs, cpus, gpus, retries, options)
    overrides = [text for text in configs if "=" in text and not Path(text).exists()]
    paths = [text for text in configs if text not in overrides]
    if not paths:
        raise ConfigError(Problem("CONFIG", "no configuration is given", "name one or more YAML files"))
    report = run_fleet(build_members(paths, overrides, folder), where, placement, notify)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)
    if report.failed:
        raise typer.Exit(1)


def _print(report: FleetReport) -> None:
    heads = ("run", "status", "seconds", "train loss", "eval loss", "peak GiB", "adapter", "folder")
    print_table(heads, map(_cells, report.rows))
    for row in report.failed:
        notify(f"{row.name} failed: {row.error}")


def _cells(row: Row) -> list[str]:
    digest = (row.adapter_digest or "").removeprefix("sha256:")[:12]
    retried = f", resumed {row.retries}x" if row.retries else ""
    peak = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / _GIB:.2f}"
    return [
        row.name,
        f"{row.status}{retried}",
        "" if row.seconds is None else f"{row.seconds:.0f}",
        _change(row.train_loss_first, row.train_loss_last),
        _change(row.eval_loss_first, row.eval_loss),
        peak,
        digest,
        row.run,
    ]


def _change(first: float | None, last: float | None) -> str:
    return " -> ".join("-" if loss is None else f"{loss:.4f}" for loss in (first, last)) if last is not None else ""
