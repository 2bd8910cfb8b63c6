"""`lamina bench scale`: trains in one, two, four processes, and prints the table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from lamina.cli.output import JsonFlag, notify, out, print_json
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.bench.scale import ScaleReport

_GIB = 2**30


def scale(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.gradient_accumulation_steps=8."),
    ] = None,
    nproc: Annotated[str, typer.Option(help="Numbers of processes, separated by commas.")] = "1,2",
    steps: Annotated[int, typer.Option(min=1, help="Measured optimizer steps of each run.")] = 10,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads of each process; by default the cores, shared by the largest run."),
    ] = None,
    gpus: Annotated[str, typer.Option(help="Numbers of GPUs for the estimates on paper.")] = "8,64,512",
    as_json: JsonFlag = False,
) -> None:
    """Measure how training scales with the number of processes, and estimate it for many GPUs."""
    from lamina.config import load_config

    checked = load_config(config, overrides or [])
    sizes, counts = _numbers("--nproc", nproc), _numbers("--gpus", gpus)
    from lamina.bench.scale import bench_scale

    each = threads or max(1, len(os.sched_getaffinity(0)) // max(sizes))
    report = bench_scale(checked, sizes, steps, each, counts, notify)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(Problem(option, f"{text!r} is no list of numbers above 0", "write for example 1,2,4"))
    return [int(part) for part in parts]


def _print(report: ScaleReport) -> None:
    table = Table("processes", "strategy", "tokens/s", "speed-up", "s a step", "communication", "MB a step", "peak GiB")
    for row in report.measured:
        table.add_row(
            str(row.world_size),
            row.strategy,
            f"{row.tokens_per_second:,.0f}",
            f"{row.speedup:.2f}x",
            f"{row.step_seconds:.3f}",
            f"{row.communication_share:.1%}",
            f"{row.bytes_per_step / 1e6:.1f}",
            " ".join(f"{memory / _GIB:.2f}" for memory in row.peak_memory_by_rank),
        )
    out.print(table)
    same = "the same adapter to the bit" if report.same_adapter else "[red]different adapters[/red]"
    out.print(f"every number of processes trained {same}")
    paper = Table("on paper", "GPUs", "way", "s a step", "communication", "efficiency", "GiB a GPU")
    for machine, rows in report.paper.items():
        for row in rows:
            paper.add_row(
                machine,
                str(row.gpus),
                row.way if row.fits else f"{row.way} (does not fit)",
                f"{row.seconds:.3f}",
                f"{row.communication:.0%}",
                f"{row.efficiency:.0%}",
                f"{row.memory / _GIB:.1f}",
            )
    out.print(paper)
    for machine, seconds in report.sequence_seconds.items():
        out.print(f"{machine}: documents divided over a machine exchange for {seconds:.3f} s a micro-batch, on paper")
