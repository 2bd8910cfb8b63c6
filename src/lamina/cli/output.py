"""Where output goes: results to stdout (one JSON object with `--json`), everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lamina.errors import ConfigError, Problem, nearest

JsonFlag = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="The base; by default the one that the adapter names.")
]
MismatchFlag = Annotated[
    bool, typer.Option("--allow-base-mismatch", help="Go on although the adapter is locked to another base.")
]

# What a generator of random numbers takes.
MAX_SEED = 2**63 - 1

# Options that take a pair: how it is written, and an example.
PAIRS = {
    "--column": ("FIELD=COLUMN", "prompt=question"),
    "--python": ("SIDE=INTERPRETER", "litgpt=/path/to/python"),
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Lets the error through: rich would end the process, and training has a checkpoint to save first."""
        raise


# Results; and everything else.
out = _Console(highlight=False, soft_wrap=True, emoji=False)
err = _Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


class _JsonStream:
    """Where the one JSON object of a command goes, and whether it went there.

    Attributes:
        file: stdout, while everything else that is written there goes to stderr; None while nobody asked for JSON.
        used: Whether it was written.
    """

    file: TextIO | None = None
    used = False


_json = _JsonStream()


@contextlib.contextmanager
def json_on_stdout(asked: bool) -> Iterator[None]:
    """Keeps stdout for the one JSON object inside the block, if asked for; what libraries print goes to stderr."""
    _json.file, _json.used = (sys.stdout if asked else None), False
    try:
        with contextlib.redirect_stdout(sys.stderr) if asked else contextlib.nullcontext():
            yield
    finally:
        _json.file = None


def print_json(value: dict[str, Any], *, only_if_nothing_was_printed: bool = False) -> None:
    """Prints the one JSON object of a command.

    Args:
        value: It.
        only_if_nothing_was_printed: Whether an earlier one stays the only one.
    """
    if _json.used and only_if_nothing_was_printed:
        return
    file = _json.file or sys.stdout
    is_utf8 = (file.encoding or "utf-8").lower().replace("-", "") == "utf8"
    text = json.dumps(_finite(value), ensure_ascii=not is_utf8, allow_nan=False)
    # Half a surrogate pair, which no encoding can write, becomes the escape that JSON has for it.
    file.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")
    file.flush()
    _json.used = True


def _finite(value: Any) -> Any:
    """The same, with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_text(text: str) -> None:
    """Prints what a model or a file holds as it is; rich would expand tabs and take the space from line ends."""
    sys.stdout.write(f"{text}\n")


def pair(option: str, text: str) -> tuple[str, str]:
    """Takes the value of an option that is in `PAIRS` apart at its `=`.

    Raises:
        ConfigError: There is none.
    """
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        form, example = PAIRS[option]
        raise ConfigError(Problem(option, f"{text!r} is not {form}", f"write it such as {example}"))
    return name, value


def column_mapping(texts: list[str] | None) -> dict[str, str] | None:
    """What `--column` maps, each given as FIELD=COLUMN; None where it is not given.

    Raises:
        ConfigError: One is not of that form, or names no field.
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


def check_target(option: str, path: Path | None) -> None:
    """Finds out before any work whether a file can be written where an option wants it.

    Raises:
        ConfigError: It cannot.
    """
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(Problem(option, f"{path} is a folder", "name a file"))
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise ConfigError(Problem(option, f"{path} cannot be written: {above} is a file", "choose another path"))
    if not os.access(path if path.exists() else above, os.W_OK):
        raise ConfigError(Problem(option, f"{path} may not be written by you", "choose another path"))


def notify(message: str) -> None:
    """Says what is being done."""
    err.print(f"[dim]{_plain(message)}[/dim]")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def stop(progress: Progress) -> None:
    """Ends bars that are on the screen; of others rich would print an empty line."""
    if progress.live.is_started:
        progress.stop()


class Bars:
    """Progress bars by what is being done, on stderr; on no terminal a line at the start of each."""

    def __init__(self) -> None:
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
        """Moves the bar of `what`."""
        if what not in self._tasks:
            if err.is_terminal:
                self._progress.start()
            self._tasks[what] = self._progress.add_task(what, total=total)
            if not err.is_terminal:
                notify(f"{what}: {total} ...")
        self._progress.update(self._tasks[what], completed=done)
