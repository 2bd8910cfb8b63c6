"""`lamina`: the table of its commands, and the main program. Each command parses its arguments, makes one library call,
and renders the result. Only the call imports torch, and only the command that is asked for is imported.

Exit codes: 0 done; 1 failed; 2 usage or configuration error; 3 a gate has not enough rows; 75 interrupted (the message
says how to resume).
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_group

from lamina.cli.arguments import COMPLETE_VARIABLE, JSON, asks_for_json, refuse_empty, refuse_undecoded_folder
from lamina.cli.failures import Commands, run_command
from lamina.cli.process import leave, listen_for_signals, open_standard_streams
from lamina.cli.verbosity import LEVEL, set_verbosity
from lamina.distributed.words import speaks

# Where each command is: its module, and its function or group there. In the order of the help.
GROUPS = {
    "bench": "bench:bench",
    "cache": "cache:cache",
    "data": "data:data",
    "fleet": "fleet:fleet",
    "registry": "registry_files:registry",
}
COMMANDS = {
    "eval": "evaluation:evaluate",
    "import": "migration:import_config",
    "init": "init:init",
    "gate": "gate:gate",
    "compare": "compare:compare",
    "generate": "generation:generate",
    "chat": "generation:chat",
    "classify": "classification:classify",
    "convert": "convert:convert",
    "serve": "serve:serve",
    "replay": "serve:replay",
    "promote": "registry:promote",
    "rollback": "registry:rollback",
    "methods": "facts:methods",
    "schema": "facts:schema",
    "completion": "facts:completion",
    "version": "facts:version",
    "train": "train:train",
    "merge": "export:merge",
    "quantize": "export:quantize",
    "verify": "checks:verify",
    "doctor": "checks:doctor",
    "quickstart": "train:quickstart",
}


def build(name: str = "") -> typer.Typer:
    """Builds the command line with one command or group, or with all of them if there is none of that name."""
    app = typer.Typer(
        name="lamina",
        cls=Commands,
        help="Parameter-efficient fine-tuning of language models, from a data file to a proven adapter.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(every)
    is_known = name in GROUPS or name in COMMANDS
    for group, place in GROUPS.items():
        if group == name or not is_known:
            app.add_typer(_imported(place), name=group)
    for command, place in COMMANDS.items():
        if command == name or not is_known:
            app.command(name=command)(_imported(place))
    return app


def _imported(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f"lamina.cli.{module}"), name)


def _print_version(asked: bool) -> None:
    if asked:
        from lamina.cli.facts import version

        version()
        raise typer.Exit


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


def _asked(arguments: list[str]) -> str:
    """The first word that is neither an option nor the level's value; empty if there is none."""
    words = (word for before, word in zip(["", *arguments], arguments, strict=False) if before != LEVEL)
    return next((word for word in words if not word.startswith("-")), "")


def _stop() -> NoReturn:
    raise KeyboardInterrupt


def complete() -> NoReturn:
    """Answers a shell that asks for completions, and ends the process."""
    from typer._completion_classes import completion_init

    completion_init()
    get_group(build())(prog_name="lamina", complete_var=COMPLETE_VARIABLE)
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
        command = get_group(build(_asked(arguments)))
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
