"""Commands that print facts: `lamina methods`, `lamina schema`, `lamina version` and `lamina completion`."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lamina.cli.arguments import COMPLETE_VARIABLE
from lamina.cli.output import JsonFlag, out, print_json, print_text
from lamina.errors import ConfigError, Problem, nearest
from lamina.version import __version__


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this method.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the methods and their settings, or those of one method."""
    from lamina.config import METHOD_CONFIGS

    if name is not None and name not in METHOD_CONFIGS:
        message = f"{name!r} is not one of {', '.join(METHOD_CONFIGS)}"
        raise ConfigError(Problem("NAME", message, nearest(name, METHOD_CONFIGS)))
    chosen = METHOD_CONFIGS if name is None else {name: METHOD_CONFIGS[name]}
    if as_json:
        print_json(
            {
                "methods": [
                    {
                        "name": each,
                        "title": c.title,
                        "summary": c.summary,
                        "paper": c.paper,
                        "learning_rate": c.learning_rate,
                        "fields": c.model_json_schema()["properties"],
                    }
                    for each, c in chosen.items()
                ]
            }
        )
        return
    for each, config in chosen.items():
        out.print(f"[bold]{each}[/bold]  {config.title}: {config.summary}")
        out.print(f"  {config.paper}", markup=False)
        out.print(f"  default learning rate {config.learning_rate:g}", markup=False)
        table = Table("field", "default", "meaning", box=None, padding=(0, 2))
        for field, info in config.model_fields.items():
            table.add_row(field, escape(repr(info.default)), escape(info.description or ""))
        out.print(table)


def schema(as_json: JsonFlag = False) -> None:
    """Print the JSON Schema of the configuration."""
    from lamina.config import Config

    if as_json:
        print_json(Config.model_json_schema())
    else:
        print_text(json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False))


def version(as_json: JsonFlag = False) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        out.print(__version__)


SHELLS = ("bash", "zsh", "fish")


def completion(
    shell: Annotated[
        str | None, typer.Argument(metavar="[SHELL]", help="bash, zsh or fish; by default that of $SHELL.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the completion script of a shell; for bash: eval "$(lamina completion bash)"."""
    wanted = shell or os.path.basename(os.environ.get("SHELL", ""))  # noqa: PTH119 - a name
    if wanted not in SHELLS:
        raise ConfigError(Problem("SHELL", f"{wanted!r} is not one of {', '.join(SHELLS)}", "name one of them"))
    from typer._completion_shared import get_completion_script

    script = get_completion_script(prog_name="lamina", complete_var=COMPLETE_VARIABLE, shell=wanted)
    if as_json:
        print_json({"shell": wanted, "script": script})
    else:
        print_text(script)
