"""`lamina import`: a configuration of another library, translated; and the table that shows what became of it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lamina.cli.output import JsonFlag, check_target, err, notify, out, print_json
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.migration.draft import Row, Translation


def import_config(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="A YAML file of Axolotl, LLaMA-Factory, TRL or alignment-handbook, a shell script that starts one of "
            "them, or the words of a command line after `--`.",
        ),
    ],
    destination: Annotated[
        Path | None, typer.Option("--out", help="YAML file to write; without it, the result is printed.")
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Leave out settings that have no counterpart, instead of stopping.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Translate a configuration of Axolotl, LLaMA-Factory or TRL."""
    from lamina.config import load_config
    from lamina.migration.translate import translate

    check_target("--out", destination)
    if destination is not None and destination.exists():
        raise ConfigError(Problem("--out", f"{destination} exists", "choose another path, or remove it"))
    translation = translate(source[0] if len(source) == 1 and _is_file(source[0]) else source)
    print_translation(translation)
    again = shlex.quote(source[0]) if len(source) == 1 else "-- ARGUMENTS"
    check(translation, f"lamina import --lenient {again}", lenient=lenient)
    load_config(translation.values)
    if destination is not None:
        from lamina import files

        files.write_bytes(destination, translation.yaml().encode("utf-8"))
    if as_json:
        print_json({**translation.as_json(), "out": destination and str(destination)})
    elif destination is None:
        out.print(translation.yaml().rstrip(), markup=False)
    if destination is not None:
        notify(f"wrote {destination}")
        err.print(f"  next    lamina train {escape(str(destination))}")


def check(translation: Translation, again: str, given: Sequence[str] = (), lenient: bool = False) -> None:
    """Refuses a translation that lost settings.

    Args:
        translation: The translation.
        again: The command that leaves them out.
        given: Overrides, some of which may make up for what was lost.
        lenient: Leave out what lamina can train without.

    Raises:
        ConfigError: Settings have no counterpart; the error names each, and the command that leaves them out.
    """
    keys = [override.partition("=")[0].strip() for override in given]
    try:
        translation.check(keys, lenient)
    except ConfigError as error:
        last = error.problems[-1]
        needed = [row for row in translation.lost(keys) if row.key]
        fix = f"remove what you can do without, or leave all of it out with `{again}`"
        if needed:
            fix = f"name the data: `lamina train {shlex.quote(translation.source)} {needed[0].key}=DATA`"
        raise ConfigError([*error.problems[:-1], Problem(last.field, last.message, fix)], error.source) from None


def print_translation(translation: Translation) -> None:
    """Prints what became of each setting, in three tables."""
    err.print(f"[bold]{escape(translation.source)}[/bold] ({translation.title})")
    _print_rows("Mapped", translation.of("mapped", "default"))
    _print_rows("Done by lamina itself, or not needed", translation.of("own"))
    _print_rows("Without a counterpart", translation.of("missing"), "yellow")


def _print_rows(title: str, rows: list[Row], style: str = "") -> None:
    from lamina.migration.draft import as_written

    if not rows:
        return
    table = Table("setting", "lamina", box=None, padding=(0, 2), title=title, title_justify="left", title_style="bold")
    for row in rows:
        name = row.name if row.kind == "default" else f"{row.name}: {_short(row.given)}"
        note = f"[dim]{escape(row.note)}[/dim]" if row.note else ""
        said = escape(_short(as_written(row), 110))
        table.add_row(escape(name), f"{said}  {note}".strip() if said else note, style=style)
    err.print(table)


def _short(value: Any, most: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _is_file(text: str) -> bool:
    return Path(text).suffix != "" and "--" not in text.partition(" ")[2]
