"""Commands that train: `lamina train` and `lamina quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamina.cli.output import MAX_SEED, JsonFlag, Overrides
from lamina.cli.processes import Nproc, start_processes


def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|DATA",
            help="A YAML file (- for standard input), of lamina, or of Axolotl, LLaMA-Factory or TRL; or a data file.",
        ),
    ],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in output_dir, or the run that CONFIG belongs to.")
    ] = False,
    nproc: Nproc = None,
    nnodes: Annotated[
        int, typer.Option(min=1, help="Number of machines; run the same command on each, with --rdzv-endpoint.")
    ] = 1,
    rdzv_endpoint: Annotated[
        str | None, typer.Option("--rdzv-endpoint", help="HOST:PORT of the machine where the processes meet.")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often to resume from the last checkpoint if a process is lost.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print the resolved configuration and how long the run will be.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an adapter, in one process or in several. A data file alone trains with all defaults."""
    from lamina.cli.training import check, print_plan, train_here
    from lamina.distributed.launch import count_processes

    count = 1 if nproc is None and nnodes == 1 else count_processes(nproc)
    if dry_run:
        print_plan(check(config, overrides or [], resume), as_json, count * nnodes)
        return
    if count == nnodes == 1 and not max_restarts:
        train_here(config, overrides or [], resume, as_json)
        return
    check(config, overrides or [], resume, show=False)  # so that its errors come once, and at once
    start_processes(count, nnodes, rdzv_endpoint, max_restarts)


def quickstart(
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for all files; by default runs/quickstart.")
    ] = None,
    model: Annotated[str, typer.Option(help="The base model.")] = "smollm2-135m",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the data and the training.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train a small real model, compare it with its base model, and merge it with a certificate. Takes minutes,
    offline."""
    from lamina.cli.quickstart import run_quickstart

    run_quickstart(folder, model, seed, as_json)
