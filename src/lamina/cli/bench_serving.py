"""`lamina bench serve`: puts the same load on lamina's engine and on its peers, and prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lamina.cli.output import MAX_SEED, JsonFlag, notify, out, print_json
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.bench.serving.report import Percentiles, ServeReport


def serve(
    model: Annotated[str | None, typer.Option(help="The base model; by default smollm2-135m.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="A model shape with random weights instead: gemma-3-270m, tinyllama-1.1b or tiny."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A .jsonl file: a string, or an object with prompt or messages, a line."),
    ] = None,
    adapters: Annotated[
        str, typer.Option(help="Numbers of adapters, separated by commas; more than 32 are kept on disk.")
    ] = "0,1,8,32,200",
    methods: Annotated[
        str, typer.Option(help="Methods of the adapters: some of lora, dora, ia3 and prefix_tuning.")
    ] = "lora,dora,ia3,prefix_tuning",
    concurrency: Annotated[str, typer.Option(help="Numbers of concurrent streams, separated by commas.")] = "1,8,32",
    rate: Annotated[
        float | None, typer.Option(min=1e-3, help="Requests per second, arriving at random, instead of streams.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Measured requests per stream, after one of warmup.")] = 2,
    peers: Annotated[
        str | None,
        typer.Option(help="Some of transformers, vllm and llama.cpp; by default all that can run."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Length of every answer in tokens.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Number of runs of each side, in turns.")] = 3,
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float32, or auto: bfloat16 if the hardware supports it natively.")
    ] = "auto",
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of prompts, adapters, arrivals and random weights.")
    ] = 0,
    target: Annotated[Path | None, typer.Option("--out", help="Also write the JSON object to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also plot the comparison to this .png, .svg or .pdf file.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure the speed and the waiting times of answers of lamina and its peers under the same load."""
    if model is not None and shape is not None:
        raise ConfigError(Problem("--shape", "selects a model, and --model selects another", "give one of them"))
    if target is not None and not target.resolve().parent.is_dir():
        raise ConfigError(Problem("--out", f"the folder of {target} does not exist", "make it first"))
    counts, streams = _numbers("--adapters", adapters), _numbers("--concurrency", concurrency)
    from lamina import files
    from lamina.bench.plot import check_plot
    from lamina.bench.serving.plot import plot as draw
    from lamina.bench.serving.run import ServeSettings, bench_serve

    settings = ServeSettings(
        model=model or "smollm2-135m",
        shape=shape,
        prompts=None if prompts is None else str(prompts),
        adapters=counts,
        methods=_names(methods),
        concurrency=streams,
        rate=rate,
        requests=requests,
        peers=None if peers is None else _names(peers),
        max_new_tokens=max_new_tokens,
        rounds=rounds,
        dtype=dtype,
        seed=seed,
    )
    if plot is not None:
        check_plot(plot)
    report = bench_serve(settings, notify)
    if target is not None:
        files.write_json(target, report.as_json())
    if plot is not None:
        draw(report, plot)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(option: str, text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(name) for name in _names(text)))
    except ValueError:
        raise ConfigError(
            Problem(option, f"{text!r} is not whole numbers separated by commas", "write them as in 1,8,32")
        ) from None


def _print(report: ServeReport) -> None:
    table = Table("", "adapters", "load", "tokens/s", "first token, ms", "between tokens, ms", "decoding / limit")
    for side in report.sides:
        served = str(side.load.adapters)
        if side.adapters_served != side.load.adapters:
            served = f"{side.adapters_served} of {served}"
        table.add_row(
            side.side,
            served,
            side.load.requests_line(),
            f"{side.tokens_per_second:,.0f}",
            _percentiles(side.waits.ttft_ms),
            _percentiles(side.waits.itl_ms),
            "" if side.limit_share is None else f"{side.limit_share:.0%}",
        )
    table.caption = "times: the 50th, 95th and 99th percentile"
    out.print(table)
    for failure in report.failed:
        notify(f"{failure.side}, {failure.adapters} adapters, failed: {failure.error}")
    for line in report.disturbed():
        notify(f"{line}, so its figures are unreliable")
    if report.ratios:
        ratios = Table("", "adapters", "load", "over", "tokens/s", "decoding", "the limits'")
        for ratio in report.ratios:
            over = ratio.over if ratio.peer in (ratio.over, ratio.side) else f"best peer, {ratio.peer}"
            figures = (ratio.tokens_per_second, ratio.decode_tokens_per_second, ratio.limit_tokens_per_second)
            ratios.add_row(
                ratio.side,
                str(ratio.load.adapters),
                ratio.load.requests_line(),
                escape(over),
                *(_times(figure) for figure in figures),
            )
        out.print(ratios)


def _percentiles(values: Percentiles) -> str:
    return " / ".join("" if value is None else f"{value:,.1f}" for value in values.values())


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
