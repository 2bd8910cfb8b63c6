"""`lamina data`: shows what is in a data file and what is wrong with it, before training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lamina.cli.output import JsonFlag, check_target, column_mapping, err, notify, out, print_json
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.checks.show import Piece, Shown

# Seconds between progress messages when stderr is not a terminal.
WORD_EVERY = 10.0

data = typer.Typer(help="Check and show data before training on it.", no_args_is_help=False)

Target = Annotated[
    str, typer.Argument(metavar="FILE|CONFIG", help="A data file, folder, glob or hub id; or a run's YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as data.max_length=2048.")
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="FIELD=COLUMN, such as prompt=question; may be repeated.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", help="Base model whose tokenizer and chat template to use; `none` to use neither."),
]


@data.command()
def check(
    target: Target,
    overrides: Overrides = None,
    columns: Columns = None,
    model: Model = None,
    evaluation: Annotated[str | None, typer.Option("--eval", help="A file that is kept for evaluation.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write the report as an HTML page with plots.")] = None,
    fixed: Annotated[
        Path | None, typer.Option("--fix", help="Write a cleaned .jsonl file, and a log of every change next to it.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check data for faults, duplicates, leakage, secrets, odd lengths and more. Exits with 1 on errors."""
    mapping = column_mapping(columns)
    for option, path in (("--html", page), ("--fix", fixed)):
        check_target(option, path)
    _check_outputs(page, fixed)
    from lamina.checks.target import find_target

    found = find_target(target, overrides or [], model=model, columns=mapping, evaluation=evaluation, notify=notify)
    from lamina.checks.check import check_data
    from lamina.checks.html import write_html
    from lamina.cli.data_report import print_report

    with err.status("") as status:
        last_word = time.monotonic()

        def progress(rows: int) -> None:
            nonlocal last_word
            status.update(f"Checking: {rows:,} rows ...")
            if (
                not err.is_terminal and time.monotonic() - last_word > WORD_EVERY
            ):  # a status is only visible on terminals
                last_word = time.monotonic()
                notify(f"Checking: {rows:,} rows ...")

        report, log = check_data(found, notify, progress, fixed)
    if page is not None:
        write_html(report, page)
    if as_json:
        print_json(report.as_json() | ({"fixed": log.as_json()} if log else {}))
    else:
        print_report(report)
        if log is not None:
            for line in log.lines():
                out.print(line, markup=False)
        if page is not None:
            out.print(f"report: {page}", markup=False)
    if report.errors:
        raise typer.Exit(1)


def _check_outputs(page: Path | None, fixed: Path | None) -> None:
    """Refuses to overwrite anything but an older page."""
    from lamina.checks.fix import log_of
    from lamina.checks.html import is_page

    written = [] if fixed is None else [fixed, log_of(fixed)]
    for path in written:
        if path.exists():
            raise ConfigError(Problem("--fix", f"{path} already exists", "give a new file name, or remove the file"))
    if page is None:
        return
    if page.resolve() in [path.resolve() for path in written]:
        raise ConfigError(Problem("--html", f"{page} is also written by --fix", "give another file name"))
    if page.exists() and not is_page(page):
        raise ConfigError(
            Problem("--html", f"{page} already exists and is not a page written by lamina", "give another file name")
        )


@data.command()
def show(
    target: Target,
    overrides: Overrides = None,
    columns: Columns = None,
    model: Model = None,
    rows: Annotated[
        list[int] | None, typer.Option("--row", min=1, help="Number of a row to show; may be repeated.")
    ] = None,
    count: Annotated[int, typer.Option("--rows", min=1, help="How many rows to show from the start.")] = 3,
    as_json: JsonFlag = False,
) -> None:
    """Print rows as the model sees them: special tokens visible, tokens in the loss in green."""
    mapping = column_mapping(columns)
    from lamina.checks.show import show_data
    from lamina.checks.target import find_target

    found = find_target(target, overrides or [], model=model, columns=mapping, notify=notify)
    shown = list(show_data(found, notify, count, rows or []))
    if as_json:
        print_json({"rows": [row.as_json() for row in shown]})
        return
    for row in shown:
        _print_row(row)


def _print_row(row: Shown) -> None:
    place = f"{row.file}:{row.line}" if row.line else row.file
    judged = {True: ", desirable", False: ", undesirable", None: ""}[row.label]
    counts = f"{row.tokens} tokens, {row.supervised_tokens} in the loss" if row.pieces else "not encoded"
    out.print(Text(f"{place} row {row.row} ({row.kind or 'not parsed'}{judged}): {counts}", style="bold"))
    if row.left_out:
        out.print(Text(f"dropped: {row.left_out}", style="yellow"))
    for note in row.notes:
        out.print(Text(f"note: {note}", style="yellow"))
    if row.pieces:
        out.print(_text(row.pieces))
    if row.rejected:
        out.print(Text("rejected:", style="bold"))
        out.print(_text(row.rejected))
    out.print()


def _text(pieces: tuple[Piece, ...]) -> Text:
    """Formats text in the loss in green (in brackets without a terminal), and special tokens in reverse video."""
    text, in_loss = Text(), False
    for piece in pieces:
        if piece.supervised != in_loss and not out.is_terminal:
            text.append("⟦" if piece.supervised else "⟧")
        in_loss = piece.supervised
        style = " ".join(part for part, on in (("green", piece.supervised), ("reverse", piece.special)) if on)
        text.append(piece.text, style=style)
    if in_loss and not out.is_terminal:
        text.append("⟧")
    return text
