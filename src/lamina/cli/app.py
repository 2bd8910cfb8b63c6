"""`lamina`: the commands. Each parses its arguments, makes one library call, and renders the result. Only the call
imports torch.

Exit codes: 0 done; 1 failed; 2 usage or configuration error; 3 a gate has not enough rows; 75 interrupted (the message
says how to resume).
"""

from __future__ import annotations

import copy
import io
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape
from rich.table import Table
from typer.main import get_group

from lamina.cli.arguments import JSON, asks_for_json, refuse_empty, refuse_undecoded_folder
from lamina.cli.bench import bench
from lamina.cli.cache import cache
from lamina.cli.classification import classify
from lamina.cli.compare import compare
from lamina.cli.convert import convert
from lamina.cli.data import data
from lamina.cli.evaluation import evaluate
from lamina.cli.facts import COMPLETE_VARIABLE, completion, methods, schema, version
from lamina.cli.failures import Commands, run_command
from lamina.cli.fleet import fleet
from lamina.cli.gate import gate
from lamina.cli.generation import chat, generate
from lamina.cli.init import init
from lamina.cli.migration import import_config
from lamina.cli.output import (
    MAX_SEED,
    Bars,
    DeviceOption,
    JsonFlag,
    MismatchFlag,
    ModelOption,
    Source,
    err,
    notify,
    out,
    print_json,
)
from lamina.cli.process import leave, listen_for_signals, open_standard_streams
from lamina.cli.processes import Nproc, start_processes
from lamina.cli.registry import promote, rollback
from lamina.cli.registry_files import registry
from lamina.cli.serve import replay, serve
from lamina.cli.verbosity import set_verbosity
from lamina.distributed.words import speaks
from lamina.errors import ConfigError, Problem

app = typer.Typer(
    name="lamina",
    cls=Commands,
    help="Parameter-efficient fine-tuning of language models, from a data file to a proven adapter.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.add_typer(bench, name="bench")
app.add_typer(cache, name="cache")
app.add_typer(data, name="data")
app.add_typer(fleet, name="fleet")
app.add_typer(registry, name="registry")
app.command(name="eval")(evaluate)
app.command(name="import")(import_config)
for command in (
    init,
    gate,
    compare,
    generate,
    chat,
    classify,
    convert,
    serve,
    replay,
    promote,
    rollback,
    methods,
    schema,
    completion,
    version,
):
    app.command()(command)


def _print_version(asked: bool) -> None:
    if asked:
        version()
        raise typer.Exit


@app.callback()
def every(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no notes, only warnings.")] = False,
    log_level: Annotated[
        str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error; also LAMINA_LOG_LEVEL.")
    ] = "info",
    timestamps: Annotated[
        bool, typer.Option("--timestamps", help="Begin each line on stderr with the time; also LAMINA_TIMESTAMPS=1.")
    ] = False,
) -> None:
    """Parameter-efficient fine-tuning of language models, from a data file to a proven adapter.

    The options below may stand anywhere on the line of any command.
    """


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.learning_rate=1e-4."),
]


@app.command()
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


@app.command()
def merge(
    source: Source,
    destination: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")],
    dtype: Annotated[
        str, typer.Option(help="bfloat16, float16, float32, or auto: the dtype that the adapter was trained in.")
    ] = "auto",
    model: ModelOption = None,
    device: DeviceOption = "auto",
    allow_base_mismatch: MismatchFlag = False,
    original_base: Annotated[
        bool,
        typer.Option(
            "--original-base", help="Merge into the weights from before quantization, if the base model is quantized."
        ),
    ] = False,
    allow_difference: Annotated[
        bool, typer.Option("--allow-difference", help="Keep the merged model even if its certificate does not pass.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Merge an adapter into its base model, write a transformers folder, and certify that it is the same model."""
    if dtype not in ("auto", "bfloat16", "float16", "float32"):
        raise ConfigError(Problem("--dtype", f"{dtype!r} is not one of auto, bfloat16, float16, float32"))
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
    destination: Annotated[Path, typer.Option("--out", help="Folder to write; must not exist.")],
    overrides: Overrides = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Number of tokens of training documents to calibrate on; by default 32768."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Quantize a base model to 4 bits, calibrated on your data (GPTQ)."""
    from lamina.config import load_config
    from lamina.config.places import check_files

    checked = load_config(config, overrides or [])
    if destination.exists():
        raise ConfigError(Problem("--out", f"{destination} already exists.", "choose another, or delete it"))
    check_files(checked.model_dump(mode="json"))
    from lamina.export.quantize import DEFAULT_TOKENS
    from lamina.export.quantize import quantize as quantize_base

    with Bars() as bars:
        result = quantize_base(
            checked, destination, tokens=tokens or DEFAULT_TOKENS, progress=bars.update, notify=notify
        )
    if as_json:
        print_json(result.as_json())
        return
    out.print(f"quantized base model: {result.path}", markup=False)
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


def _part(name: str) -> typer.Typer:
    """The command or the group of that name alone, since building all of them takes longer than some need to run."""
    groups = [group for group in app.registered_groups if group.name == name]
    commands = [each for each in app.registered_commands if name in (each.name, getattr(each.callback, "__name__", ""))]
    if not groups and not commands:
        return app
    part = copy.copy(app)
    part.registered_groups, part.registered_commands = groups, commands
    return part


def _stop() -> NoReturn:
    raise KeyboardInterrupt


def complete() -> NoReturn:
    """Answers a shell that asks for completions, and ends the process."""
    from typer._completion_classes import completion_init

    completion_init()
    get_group(app)(prog_name="lamina", complete_var=COMPLETE_VARIABLE)
    leave(0)


def main() -> None:
    """Runs the command line. Every error becomes one message and an exit code."""
    open_standard_streams()
    listen_for_signals()  # training replaces these handlers with its own
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)  # data may contain characters that the encoding cannot represent
    arguments = sys.argv[1:]
    if COMPLETE_VARIABLE in os.environ:
        complete()
    try:
        command = get_group(_part(next((word for word in arguments if not word.startswith("-")), "")))
        as_json = asks_for_json(command, arguments)
    except KeyboardInterrupt:
        leave(run_command(_stop, JSON in arguments) if speaks() else 1)

    def run() -> object:
        refuse_empty(command, arguments)
        refuse_undecoded_folder()
        given = set_verbosity(command, arguments)
        return command(args=given or ["--help"], standalone_mode=False)

    code = run_command(run, as_json)
    leave(code if arguments else 2)  # this shows the help, but without a command it is a usage error
