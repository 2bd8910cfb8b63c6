"""`lamina`: the commands. Each parses, makes one library call, and renders; torch is imported inside the call only.

Exit codes: 0 done, 1 failed, 2 usage or configuration, 75 interrupted (the message says how to go on).
"""

from __future__ import annotations

import io
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from typer.main import get_command

from lamina.cli.arguments import asks_for_json, refuse_empty
from lamina.cli.bench import bench
from lamina.cli.cache import cache
from lamina.cli.compare import compare
from lamina.cli.data import data
from lamina.cli.facts import methods, schema, version
from lamina.cli.failures import Commands, run_command, tracebacks_in
from lamina.cli.output import (
    MAX_SEED,
    Bars,
    JsonFlag,
    MismatchFlag,
    ModelOption,
    check_target,
    column_mapping,
    err,
    notify,
    out,
    print_json,
)
from lamina.cli.process import leave, listen_for_signals, open_standard_streams
from lamina.errors import ConfigError, Problem

app = typer.Typer(
    name="lamina",
    cls=Commands,
    help="Parameter-efficient fine-tuning of language models, from a data file to a proven adapter.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(bench, name="bench")
app.add_typer(cache, name="cache")
app.add_typer(data, name="data")
app.command()(compare)
for listing in (methods, schema, version):
    app.command()(listing)

Source = Annotated[str, typer.Argument(metavar="RUN|ADAPTER", help="A run directory or an adapter folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.learning_rate=1e-4."),
]


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in output_dir, or the run that CONFIG belongs to.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train an adapter."""
    from lamina.config import load_config

    checked = load_config(config, overrides or [])
    from lamina.cli.training import TrainingView, print_summary, stopped_at_once
    from lamina.training.loop import train as train_run

    try:
        with TrainingView() as view, tracebacks_in(Path(checked.output_dir)):
            run = train_run(checked, view, resume=resume)
    except KeyboardInterrupt:
        raise stopped_at_once(checked) from None
    summary = run.summary or {}
    if as_json:
        print_json(summary)
        return
    print_summary(summary)
    err.print(f"  next    lamina chat {escape(str(run.path))}")


@app.command(name="eval")
def evaluate(
    source: Source,
    data: Annotated[
        str | None, typer.Option("--data", help="A data file; by default the run's evaluation data.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="FIELD=COLUMN, such as prompt=question; may be repeated."),
    ] = None,
    exact_match: Annotated[
        bool,
        typer.Option("--exact-match", help="Also generate answers and compare them with the expected ones."),
    ] = False,
    score: Annotated[
        list[str] | None,
        typer.Option("--score", metavar="NAME", help="Score generated answers, such as final_answer; may be repeated."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest generated answer, with --score; by default 256.")
    ] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Use only the first N rows.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Write the generated answers to this .jsonl file.")] = None,
    model: ModelOption = None,
    allow_base_mismatch: MismatchFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Loss, perplexity and scores of an adapter's answers, with the bare base beside it."""
    generates = exact_match or bool(score)
    if predictions is not None and not generates:
        raise ConfigError(Problem("--predictions", "has nothing to write without --exact-match", "add --exact-match"))
    check_target("--predictions", predictions)
    if max_new_tokens is not None and not generates:
        raise ConfigError(Problem("--max-new-tokens", "does nothing without --exact-match", "add --exact-match"))
    mapping = column_mapping(columns)
    if mapping and data is None:
        raise ConfigError(Problem("--column", "maps the columns of --data, which is not given", "add --data FILE"))
    from lamina.engine.sampling import DEFAULT_MAX_TOKENS
    from lamina.evaluation.evaluate import evaluate as evaluate_adapter
    from lamina.files import write_text

    with Bars() as bars:
        result = evaluate_adapter(
            source,
            data,
            columns=mapping,
            max_rows=max_rows,
            exact_match=exact_match,
            score=score or [],
            max_new_tokens=max_new_tokens or DEFAULT_MAX_TOKENS,
            model=model,
            allow_base_mismatch=allow_base_mismatch,
            progress=bars.update,
            notify=notify,
        )
    if predictions is not None:
        lines = [json.dumps(vars(prediction), ensure_ascii=False) for prediction in result.predictions]
        write_text(predictions, "\n".join(lines) + "\n")
    if as_json:
        print_json(result.as_json())
        return
    table = Table("", "bare base", "adapter")
    table.add_row("loss", f"{result.base_loss:.4f}", f"{result.loss:.4f}")
    if result.perplexity is not None:
        table.add_row("perplexity", f"{result.base_perplexity:.2f}", f"{result.perplexity:.2f}")
    for name, value in result.metrics.items():
        table.add_row(name, f"{result.base_metrics[name]:.4f}", f"{value:.4f}")
    for name, scores in result.scores.items():
        table.add_row(name.replace("_", " "), f"{scores.base:.1%}", f"{scores.adapter:.1%}")
    out.print(table)
    left_out = "".join(f"; left out {count}: {reason}" for reason, count in result.dropped.items())
    out.print(f"{result.rows} rows{left_out}")


@app.command()
def generate(
    source: Source,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A user turn; may be repeated.")] = None,
    system: Annotated[str | None, typer.Option(help="A system turn before each prompt.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="For sampling.")] = 0,
    base: Annotated[bool, typer.Option("--base", help="Let the bare base answer.")] = False,
    model: ModelOption = None,
    allow_base_mismatch: MismatchFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Answer prompts, given with --prompt or as lines on stdin."""
    prompts = list(prompt or [])
    if not prompts and not sys.stdin.isatty():
        prompts = [line.removeprefix("\ufeff").rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise ConfigError(Problem("--prompt", "is required, or lines on stdin", 'add --prompt "..."'))
    from lamina.adapters.load import load
    from lamina.cli.chat import print_answers
    from lamina.engine.generate import build_generator, generate_each
    from lamina.engine.generator import ADAPTER
    from lamina.engine.sampling import Sampling

    loaded = load(source, model=model, allow_base_mismatch=allow_base_mismatch, notify=notify)
    generator, sampling = build_generator(loaded), Sampling(temperature, max_new_tokens, seed)
    for note in (*loaded.notes, *generator.notes(sampling)):
        notify(note)
    answers = generate_each(generator, prompts, sampling, system=system, adapter=None if base else ADAPTER)
    if not print_answers(prompts, answers, as_json):
        raise typer.Exit(1)


@app.command()
def chat(
    source: Source,
    system: Annotated[str | None, typer.Option(help="A system turn to begin with.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, help="For sampling; by default new answers each time.")
    ] = None,
    model: ModelOption = None,
    allow_base_mismatch: MismatchFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Talk to an adapter in the terminal; /base and /adapter switch between it and the bare base."""
    from lamina.adapters.load import load
    from lamina.cli.chat import run_chat
    from lamina.engine.generate import build_generator
    from lamina.engine.sampling import Sampling

    loaded = load(source, model=model, allow_base_mismatch=allow_base_mismatch, notify=notify)
    generator, sampling = build_generator(loaded), Sampling(temperature, max_new_tokens, seed)
    for note in (*loaded.notes, *generator.notes(sampling)):
        notify(note)
    turns = run_chat(generator, sampling, system, quiet=as_json)
    if as_json:
        print_json({"turns": turns})


@app.command()
def merge(
    source: Source,
    destination: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist yet.")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float32, or auto: what the adapter was trained on.")] = "auto",
    model: ModelOption = None,
    allow_base_mismatch: MismatchFlag = False,
    original_base: Annotated[
        bool,
        typer.Option(
            "--original-base", help="Merge into the weights that a quantized base had before it was quantized."
        ),
    ] = False,
    allow_difference: Annotated[
        bool, typer.Option("--allow-difference", help="Keep the merged model even if its probes do not pass.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Merge an adapter into its base, write a plain transformers folder, and prove that it is the same model."""
    if dtype not in ("auto", "bfloat16", "float32"):
        raise ConfigError(Problem("--dtype", f"{dtype!r} is not one of auto, bfloat16, float32"))
    from lamina.export.merge import merge as merge_adapter

    merged = merge_adapter(
        source,
        destination,
        model=model,
        dtype=dtype,
        allow_base_mismatch=allow_base_mismatch,
        original_base=original_base,
        allow_difference=allow_difference,
        notify=notify,
    )
    if as_json:
        print_json(merged.as_json())
        return
    out.print(f"merged model: {merged.path}", markup=False)
    out.print(merged.certificate.line(), markup=False)


@app.command()
def quantize(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file with the model and the data.")],
    destination: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist yet.")],
    overrides: Overrides = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Of training documents to run the base over; by default 32768.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Quantize a base to 4 bits, rounded for the inputs that its layers see on your data (GPTQ)."""
    from lamina.config import load_config

    checked = load_config(config, overrides or [])
    from lamina.export.quantize import DEFAULT_TOKENS
    from lamina.export.quantize import quantize as quantize_base

    with Bars() as bars:
        result = quantize_base(
            checked, destination, tokens=tokens or DEFAULT_TOKENS, progress=bars.update, notify=notify
        )
    if as_json:
        print_json(result.as_json())
        return
    out.print(f"quantized base: {result.path}", markup=False)
    out.print(result.line(), markup=False)
    given = [config, *(overrides or []), f"model={result.path}", "quantization=null"]
    err.print(f"  next    lamina train {escape(shlex.join(given))}", soft_wrap=True)


@app.command()
def verify(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="A YAML file; by default the quickstart's model and data."),
    ] = None,
    overrides: Overrides = None,
    as_json: JsonFlag = False,
) -> None:
    """Prove on your own model and data that packing, accumulation, resuming, merging and the like change nothing."""
    from lamina.config import load_config

    changes = overrides or []
    if config is not None and "=" in config and not Path(config).exists():
        config, changes = None, [config, *changes]  # overrides of the quickstart's configuration
    checked = None if config is None else load_config(config, changes)
    from lamina.cli.verification import print_event, print_verification
    from lamina.verification.verify import verify as run_verification

    result = run_verification(checked, print_event, overrides=[] if checked else changes)
    if as_json:
        print_json(result.as_json())
    else:
        print_verification(result)
    if not result.passed:
        raise typer.Exit(1)


@app.command()
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


@app.command()
def quickstart(
    folder: Annotated[
        Path | None, typer.Option("--out", help="Where to put everything; by default runs/quickstart.")
    ] = None,
    model: Annotated[str, typer.Option(help="The base.")] = "smollm2-135m",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of data and training.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Train a small real model, compare it with its base, and merge it with a certificate. Takes minutes, offline."""
    from lamina.cli.quickstart import run_quickstart

    run_quickstart(folder, model, seed, as_json)


def main() -> None:
    """Runs the command line; every error becomes one message and an exit code."""
    open_standard_streams()
    listen_for_signals()  # training puts handlers of its own in the place of these
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)  # data may hold what no encoding can write, and what is no text
    arguments = sys.argv[1:]
    command = get_command(app)

    def run() -> object:
        refuse_empty(command, arguments)
        return app(args=arguments or ["--help"], standalone_mode=False)

    code = run_command(run, asks_for_json(command, arguments))
    leave(code if arguments else 2)  # the help was shown, but nothing was asked for
