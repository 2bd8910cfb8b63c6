"""`lamina bench`: compares lamina with its peers, and prints the table."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lamina.cli.bench_scale import scale
from lamina.cli.bench_serving import serve
from lamina.cli.output import MAX_SEED, JsonFlag, advising_column, column_mapping, notify, out, pair, print_json
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.bench.report import BenchReport

bench = typer.Typer(help="Measure lamina against its peers.", no_args_is_help=False)

_GIB = 2**30


@bench.callback()
def _bench() -> None:
    """Measure lamina against its peers."""


bench.command()(serve)
bench.command()(scale)


@bench.command()
def train(
    data: Annotated[str | None, typer.Option(help="Rows to train on; by default the quickstart's.")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--column", help="FIELD=COLUMN, such as prompt=question; may be repeated.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base model; by default smollm2-135m.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="A model shape with random weights instead: gemma-3-270m, tinyllama-1.1b or tiny."),
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="Peers to compare with, separated by commas; by default all that are installed.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps per process, after two warmup steps.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Number of runs of each side, in turns.")] = 3,
    tokens_per_step: Annotated[
        int, typer.Option(min=16, help="Maximum number of tokens per optimizer step, without padding.")
    ] = 2048,
    max_length: Annotated[
        int, typer.Option(min=16, help="Maximum length of a row in tokens; longer rows are dropped.")
    ] = 1024,
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float32, or auto: bfloat16 if the hardware supports it natively.")
    ] = "auto",
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rank r of LoRA, on every linear layer.")] = 16,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate, constant over the steps.")] = 2e-4,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of the order, the adapters and random weights.")
    ] = 0,
    python: Annotated[
        list[str] | None,
        typer.Option(help="SIDE=INTERPRETER for a peer in its own environment; may be repeated."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also plot the comparison to this .png, .svg or .pdf file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure training speed, memory and losses of lamina and its peers on the same rows."""
    if model is not None and shape is not None:
        raise ConfigError(Problem("--shape", "selects a model, and --model selects another", "give one of them"))
    if columns and data is None:
        raise ConfigError(Problem("--column", "maps the columns of --data, which is not given", "add --data FILE"))
    mapping = column_mapping(columns)
    interpreters = dict(pair("--python", text) for text in python or [])
    for side, interpreter in interpreters.items():
        if shutil.which(interpreter) is None:
            raise ConfigError(Problem("--python", f"{interpreter}, for {side}, cannot be run", "check the path"))
    from lamina.bench.plot import check_plot
    from lamina.bench.report import plot as draw
    from lamina.bench.run import BenchSettings, bench_train

    settings = BenchSettings(
        model=model or "smollm2-135m",
        shape=shape,
        data=data,
        columns=mapping,
        peers=[name.strip() for name in peers.split(",")] if peers is not None else None,
        steps=steps,
        rounds=rounds,
        tokens_per_step=tokens_per_step,
        max_length=min(max_length, tokens_per_step),
        dtype=dtype,
        rank=rank,
        learning_rate=learning_rate,
        seed=seed,
        python=interpreters,
    )
    if plot is not None:
        check_plot(plot)
    with advising_column():
        report = bench_train(settings, notify)
    if plot is not None:
        draw(report, plot)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)


def _print(report: BenchReport) -> None:
    table = Table(
        "", "real tokens/s", "supervised/s", "s a step", "GEMM limit", "peak GiB", "of it loaded", "last loss"
    )
    for side in report.sides:
        table.add_row(
            side.side,
            f"{side.tokens_per_second:,.0f}",
            f"{side.supervised_tokens_per_second:,.0f}",
            f"{side.step_seconds:.2f}",
            f"{side.gemm_share:.0%}",
            f"{side.peak_bytes / _GIB:.2f}",
            f"{side.loaded_bytes / _GIB:.2f}",
            f"{side.losses[-1]:.4f}",
        )
    for side, error in report.failed.items():
        table.add_row(side, "[red]failed[/red]" if side not in {s.side for s in report.sides} else "[red]failed later")
        notify(f"{side} failed: {error}")
    out.print(table)
    for side in report.sides:
        if side.disturbed:
            notify(
                f"{side.side}: other processes kept {side.other_cores:.1f} cores busy, so its figures are unreliable"
            )
    if report.ratios:
        ratios = Table(
            "lamina / peer",
            "speed",
            "speed, relative to the machine's rate",
            "peak memory",
            "training memory",
        )
        for ratio in report.ratios:
            ratios.add_row(
                ratio.peer,
                f"{ratio.speed:.2f}x",
                f"{ratio.gemm_share:.2f}x",
                f"{ratio.peak_memory:.2f}x",
                f"{ratio.training_memory:.2f}x",
            )
        out.print(ratios)
    total = sum(report.flops.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {value / total:.0%}" for name, value in report.flops.items())
    out.print(
        f"a step needs {total / 1e9:,.1f} GFLOP ({escape(parts)}); plain matrix products ran at "
        f"{report.gemm_rate / 1e9:,.0f} GFLOP/s"
    )
