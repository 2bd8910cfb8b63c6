"""`lamina compare`: compares candidates under one budget."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from lamina.cli.output import JsonFlag, notify, out, print_json
from lamina.cli.placement import Cpus, Gpus, Jobs, On, Option, Retries, checked_placement, output_folder
from lamina.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lamina.comparison.report import Comparison

TASKS = ("exact_match",)

# Width of the table in a file or a pipe, so that no figure is truncated.
_FILE_WIDTH = 180
# As wide as a table may want to be.
_WIDEST = 10_000


def compare(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE[,VALUE]...]...",
            help="Overrides; a key with several values is varied, and each combination is a candidate.",
        ),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, separated by commas; by default the configuration's.")
    ] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="The same as a positional KEY=VALUE[,VALUE]...; may be repeated.")
    ] = None,
    candidates: Annotated[
        list[str] | None,
        typer.Option("--candidate", help='Another candidate: "NAME KEY=VALUE ...", in quotes; may be repeated.'),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Folder for all files; by default runs/compare-CONFIG.")
    ] = None,
    task: Annotated[str, typer.Option(help="How to score answers to --test: exact_match.")] = "exact_match",
    test: Annotated[
        str | None, typer.Option(help="Test rows to answer and score; they must not be in the training data.")
    ] = None,
    max_test_rows: Annotated[int | None, typer.Option(min=1, help="Use only the first N test rows.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Maximum length of an answer in tokens; by default 256.")
    ] = None,
    general: Annotated[
        str | None, typer.Option(help="General text (.txt, or .jsonl with text) to measure forgetting on.")
    ] = None,
    general_pieces: Annotated[
        int | None,
        typer.Option(min=1, help="Number of pieces of it, each at most data.max_length tokens; by default 64."),
    ] = None,
    screen: Annotated[
        bool,
        typer.Option(
            "--screen", help="Successive halving: only the best candidates continue to the full number of steps."
        ),
    ] = False,
    on: On = "local",
    jobs: Jobs = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    retries: Retries = 3,
    options: Option = None,
    as_json: JsonFlag = False,
) -> None:
    """Train several methods or settings under one budget and compare them. Run it again to resume."""
    _check_pairs(test, max_test_rows, max_new_tokens, general, general_pieces)
    if task not in TASKS:
        raise ConfigError(Problem("--task", f"{task!r} is not one of {', '.join(TASKS)}"))
    from lamina.comparison.candidates import build_candidates, split_choices
    from lamina.config.load import config_values

    placement = checked_placement(on, jobs, cpus, gpus, retries, options)
    values = config_values(config)
    where = output_folder(folder, f"compare-{Path(config).stem}")
    choices = dict(split_choices(text) for text in [*(settings or []), *(grid or [])])
    built = build_candidates(
        values,
        where,
        methods=[name.strip() for name in methods.split(",")] if methods else [],
        grid=choices,
        named=dict(_named(text) for text in candidates or []),
    )
    from lamina.comparison.compare import compare as run_compare
    from lamina.comparison.measure import Measuring

    given = {"max_new_tokens": max_new_tokens, "general_pieces": general_pieces}
    measuring = Measuring(
        test=test,
        max_test_rows=max_test_rows,
        general=general,
        **{name: value for name, value in given.items() if value is not None},
    )
    comparison = run_compare(built, where, measuring, screen=screen, placement=placement, notify=notify)
    if as_json:
        print_json(comparison.as_json())
    else:
        _print(comparison, where)
    if comparison.failed:
        raise typer.Exit(1)


def _check_pairs(
    test: str | None,
    max_test_rows: int | None,
    max_new_tokens: int | None,
    general: str | None,
    general_pieces: int | None,
) -> None:
    problems = [
        Problem(option, f"has no effect without {needed}", f"add {needed} FILE")
        for option, value, needed, file in (
            ("--max-test-rows", max_test_rows, "--test", test),
            ("--max-new-tokens", max_new_tokens, "--test", test),
            ("--general-pieces", general_pieces, "--general", general),
        )
        if value is not None and file is None
    ]
    for option, file in (("--test", test), ("--general", general)):
        if file is not None and not Path(file).is_file():
            problems.append(Problem(option, f"{file} does not exist", "check the path"))
    if problems:
        raise ConfigError(problems)


def _named(text: str) -> tuple[str, list[str]]:
    try:
        name, *changes = shlex.split(text)
    except ValueError:  # nothing in it, or an unclosed quote
        name, changes = "=", []
    if "=" in name or not all("=" in change for change in changes):
        raise ConfigError(Problem("--candidate", f"{text!r} is not NAME KEY=VALUE ...", 'write "small method.r=4"'))
    return name, changes


def _print(comparison: Comparison, where: Path) -> None:
    from lamina.comparison.report import best_in, columns

    heads = columns(comparison)
    winners = [best_in(column, comparison) for column in heads]
    cells = [
        [
            f"[bold]{escape(text)}[/bold]" if text and outcome.name == winner else escape(text)
            for text, winner in zip((column.text(outcome) for column in heads), winners, strict=True)
        ]
        for outcome in comparison.outcomes
    ]
    styles = [{"failed": "red", "left out": "dim"}.get(outcome.state, "") for outcome in comparison.outcomes]
    table = Table(*(column.title for column in heads))
    for row, style in zip(cells, styles, strict=True):
        table.add_row(*row, style=style)
    width = out.width if out.is_terminal else max(out.width, _FILE_WIDTH)
    if out.measure(table, options=out.options.update(max_width=_WIDEST)).maximum <= width:
        out.print(table, width=width)
    else:
        _print_turned([column.title for column in heads], cells, styles, width)
    for outcome in comparison.outcomes:
        for note in outcome.notes:
            notify(f"{outcome.name}: {note}")
        if outcome.error:
            notify(f"{outcome.name} failed: {outcome.error}")
    out.print(f"table and plots: {where / 'compare.html'}", markup=False)


def _print_turned(titles: list[str], cells: list[list[str]], styles: list[str], width: int) -> None:
    """Prints candidates as columns with numbers, below a list of their names: whole names fit in any width."""
    for number, row in enumerate(cells, start=1):
        out.print(f"{number:>3}  {row[0]}")
    left = max(len(title) for title in titles)
    widest = max((len(re.sub(r"\[/?bold\]", "", cell)) for row in cells for cell in row[1:]), default=1)
    at_once = max(1, (width - left - 4) // (widest + 3))
    for first in range(0, len(cells), at_once):
        shown = list(range(first, min(first + at_once, len(cells))))
        table = Table("", *(str(place + 1) for place in shown))
        for line, title in enumerate(titles[1:], start=1):
            if any(cells[place][line] for place in shown):
                row = (
                    f"[{styles[place]}]{cells[place][line]}[/]" if styles[place] else cells[place][line]
                    for place in shown
                )
                table.add_row(title or "state", *row)
        out.print(table, width=width)
