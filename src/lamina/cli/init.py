"""`lamina init`: writes a commented configuration from a data file and a question or two."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from lamina.cli.output import JsonFlag, check_target, column_mapping, err, out, print_json


def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data file, folder or glob.")],
    path: Annotated[
        Path | None, typer.Option("--out", help="The .yaml file to write; by default the data file's name with .yaml.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The base model; by default smollm2-135m. Without it, it is asked for."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="FIELD=COLUMN, such as prompt=question; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a commented configuration for a data file. In a terminal, it asks what it cannot know."""
    mapping = column_mapping(columns)
    check_target("--out", path)
    from lamina.api.starter import default_path, look_at, write_starter
    from lamina.config import Config

    default = str(Config.model_fields["model"].default)
    if sys.stdin.isatty() and err.is_terminal and not as_json:
        facts = look_at(data, mapping)
        if not facts.format and facts.columns:
            err.print(f"The columns are {', '.join(map(escape, facts.columns))}.")
            mapping = {field: _choice(what, facts.columns) for field, what in _FIELDS.items()}
        model = model or typer.prompt("Base model (alias, folder or hub id)", default=default, err=True)
    starter = write_starter(data, path or default_path(data), model=model or default, columns=mapping, force=force)
    if as_json:
        print_json(starter.as_json())
        return
    if starter.note:
        err.print(starter.note, markup=False)
    out.print(f"configuration: {starter.path} ({starter.rows:,} rows, format {starter.format})", markup=False)
    err.print(f"  next    lamina train {escape(str(starter.path))}")


_FIELDS = {"prompt": "Which column is the question", "completion": "Which column is the answer"}


def _choice(what: str, columns: list[str]) -> str:
    while True:
        chosen = str(typer.prompt(what, err=True)).strip()
        if chosen in columns:
            return chosen
        err.print(f"There is no column {chosen!r}.", markup=False)
