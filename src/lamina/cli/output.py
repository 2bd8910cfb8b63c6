"""Where output goes: results to stdout (one JSON object with `--json`), everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from lamina.errors import ConfigError, DataError, Problem, nearest

if TYPE_CHECKING:
    from rich.progress import Progress

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.learning_rate=1e-4."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
Source = Annotated[str, typer.Argument(metavar="RUN|ADAPTER", help="A run directory or an adapter folder.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="The base model; by default the one that the adapter records.")
]


def _use_device(name: str) -> str:
    if name != "auto":
        from lamina.machine.hardware import use_device

        use_device(name)
    return name


DeviceOption = Annotated[
    str,
    typer.Option("--device", callback=_use_device, help="auto (a GPU if there is one), cpu, cuda, cuda:N or mps."),
]
MismatchFlag = Annotated[
    bool, typer.Option("--allow-base-mismatch", help="Continue even if the adapter is locked to another base model.")
]

# The largest seed that a random generator accepts.
MAX_SEED = 2**63 - 1

# Options that take a pair: its format, and an example.
PAIRS = {
    "--column": ("FIELD=COLUMN", "prompt=question"),
    "--adapter": ("NAME=PATH", "support=runs/support"),
    "--tag": ("KEY=VALUE", "owner=ada"),
    "--python": ("SIDE=INTERPRETER", "litgpt=/path/to/python"),
}


# How much goes to stderr: each level shows what it names and all after it. `debug` adds tracebacks.
LEVELS = ("debug", "info", "warning", "error")


class _Console(Console):
    """A console that can leave out what is less than a warning, and write the time before each line.

    Attributes:
        level: One of `LEVELS`.
        timestamps: Whether lines begin with the time.
    """

    level = "info"
    timestamps = False

    def on_broken_pipe(self) -> None:
        """Re-raises the error: rich would exit, but training must save a checkpoint first."""
        raise

    @property
    def is_terminal(self) -> bool:
        """Whether bars can be drawn: not in a file, nor between lines with times, nor where only warnings count."""
        return super().is_terminal and not self.timestamps and self.level in ("debug", "info")

    def print(self, *objects: Any, **settings: Any) -> None:
        """Prints what the level lets through."""
        if LEVELS.index(_level_of(objects)) < LEVELS.index(self.level):
            return
        if not self.timestamps:
            super().print(*objects, **settings)
            return
        with self.capture() as captured:
            super().print(*objects, **settings)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.file.write("".join(f"{stamp} {line}" for line in captured.get().splitlines(keepends=True)))
        self.file.flush()


def _level_of(objects: Sequence[Any]) -> str:
    """Returns the level of what is printed, by how it begins."""
    begin = re.sub(r"^(\[[a-z ]+\])*\s*", "", str(objects[0])) if objects else ""
    return "error" if begin.startswith(("error:", "stopped:")) else "warning" if begin.startswith("warning") else "info"


# The consoles for results, and for everything else.
out = _Console(highlight=False, soft_wrap=True, emoji=False)
err = _Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


class _JsonStream:
    """The stream for a command's JSON object.

    Attributes:
        file: The original stdout, while everything else written to stdout goes to stderr; None unless JSON was
            requested.
        used: Whether the object has been written.
    """

    file: TextIO | None = None
    used = False


_json = _JsonStream()


@contextlib.contextmanager
def json_on_stdout(asked: bool) -> Iterator[None]:
    """Reserves stdout for one JSON object inside the block, if requested; other output goes to stderr."""
    _json.file, _json.used = (sys.stdout if asked else None), False
    try:
        with contextlib.redirect_stdout(sys.stderr) if asked else contextlib.nullcontext():
            yield
    finally:
        _json.file = None


def print_json(value: dict[str, Any], *, only_if_nothing_was_printed: bool = False) -> None:
    """Prints the JSON object of a command.

    Args:
        value: The object, as plain data.
        only_if_nothing_was_printed: Whether to do nothing if an object has already been printed.
    """
    if _json.used and only_if_nothing_was_printed:
        return
    file = _json.file or sys.stdout
    is_utf8 = (file.encoding or "utf-8").lower().replace("-", "") == "utf8"
    text = json.dumps(_finite(value), ensure_ascii=not is_utf8, allow_nan=False)
    # Half of a surrogate pair, which no encoding can represent, becomes a JSON escape.
    file.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    file.flush()
    _json.used = True


def _finite(value: Any) -> Any:
    """Replaces non-finite numbers by null, since JSON cannot represent them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_text(text: str) -> None:
    """Prints text from a model or a file unchanged; rich would expand tabs and strip trailing white space."""
    sys.stdout.write(f"{text}\n")


def print_table(head: tuple[str, ...], rows: Iterable[Sequence[object]]) -> None:
    """Prints aligned columns; rich's tables take longer than the rest of a command, and break long cells."""
    cells = [head, *(tuple(" ".join(str(cell).split()) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        if any(row):
            print_text("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def pair(option: str, text: str) -> tuple[str, str]:
    """Splits the value of an option in `PAIRS` at its `=`.

    Raises:
        ConfigError: The value is not a pair.
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        form, example = PAIRS[option]
        raise ConfigError(Problem(option, f"{text!r} is not {form}", f"write a pair such as {example}"))
    return name, value


def column_mapping(texts: list[str] | None) -> dict[str, str] | None:
    """Returns the column mapping given with `--column`, each as FIELD=COLUMN; None if the option is not given.

    Raises:
        ConfigError: A value does not have that form, or its field does not exist.
    """
    if not texts:
        return None
    from lamina.config.data import MAPPABLE_FIELDS

    mapping = dict(pair("--column", text) for text in texts)
    for name in mapping:
        if name not in MAPPABLE_FIELDS:
            hint = nearest(name, MAPPABLE_FIELDS)
            raise ConfigError(Problem("--column", f"{name!r} is not one of {', '.join(MAPPABLE_FIELDS)}", hint))
    return mapping


@contextlib.contextmanager
def advising_column() -> Iterator[None]:
    """Puts `--column` into the advice of an error about unknown columns, for commands that take no overrides."""
    try:
        yield
    except DataError as error:
        from lamina.data.formats import MAP_COLUMNS

        if MAP_COLUMNS not in str(error):
            raise
        options = MAP_COLUMNS.replace("data.columns.", "--column ")
        raise DataError(str(error).replace(MAP_COLUMNS, options)) from None


def check_target(option: str, path: Path | None) -> None:
    """Checks, before any work, that an option's output file can be written.

    Raises:
        ConfigError: It cannot be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(Problem(option, f"{path} is a folder", "give a file name"))
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(Problem(option, f"{path} cannot be written: {above} is a file", "choose another path"))
    if not os.access(path if path.exists() else above, os.W_OK):
        raise ConfigError(Problem(option, f"you have no permission to write {path}", "choose another path"))


def notify(message: str) -> None:
    """Prints a progress message."""
    err.print(f"[dim]{_plain(message)}[/dim]")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def stop(progress: Progress) -> None:
    """Stops progress bars if they are on the screen; otherwise, rich would print an empty line."""
    if progress.live.is_started:
        progress.stop()


class Bars:
    """Progress bars by task name, on stderr; without a terminal, a line at the start of each task."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        stop(self._progress)

    def update(self, what: str, done: int, total: int) -> None:
        """Updates the bar of the task `what`."""
        if what not in self._tasks:
            if err.is_terminal:
                self._progress.start()
            self._tasks[what] = self._progress.add_task(what, total=total)
            if not err.is_terminal:
                notify(f"{what}: {total} ...")
        self._progress.update(self._tasks[what], completed=done)
