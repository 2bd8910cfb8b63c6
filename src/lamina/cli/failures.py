"""Runs a command, and turns whatever ends it into one message, an exit code and, with `--json`, one JSON object.

The messages of errors that lamina raises on purpose are complete. Any other exception is also reported in one line, and
its traceback goes to a file: in the run's folder if there is one, or else in the cache's `errors/`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import select
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup
from typer.exceptions import TyperException

import lamina
from lamina import files
from lamina.cache.folder import cache_folder
from lamina.cli.output import err, json_on_stdout, print_json
from lamina.distributed.failure import is_interruption
from lamina.distributed.words import leave_told, leave_words
from lamina.errors import Interrupted, LaminaError, StorageError
from lamina.version import __version__

ERRORS_FOLDER = "errors"
_SOURCE = Path(lamina.__file__).parent
_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "datasets", "numpy", "typer", "rich")
# Maximum length of another library's message, which may be pages long; the file has the full message.
_MOST_LETTERS = 400
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


class UnexpectedError(LaminaError):
    """An error that lamina did not foresee.

    Args:
        error: The exception.
        folder: Folder for the file with the traceback, if it is writable.
        advice: A sentence on what to do next.

    Attributes:
        path: The file with the traceback; None if it could not be written.
    """

    def __init__(self, error: BaseException, folder: Path, advice: str = "") -> None:
        self.cause = type(error).__name__
        self.path = _write_details(error, folder)
        where = f"The traceback is in {self.path}" if self.path else "Its traceback could not be written to a file"
        super().__init__(f"{_reason(error)}. {where}.{f' {advice}' if advice else ''}")

    def details(self) -> dict[str, object]:
        return {**super().details(), "cause": self.cause, "traceback": str(self.path) if self.path else None}


@contextlib.contextmanager
def tracebacks_in(run: Path) -> Iterator[None]:
    """Writes the traceback of an unforeseen error inside the block to the run's folder, if it exists by then."""
    try:
        yield
    except LaminaError:
        raise
    except Exception as error:
        folder = run / ERRORS_FOLDER if run.is_dir() else cache_folder() / ERRORS_FOLDER
        kept = any((run / "checkpoints").glob("*"))
        command = shlex.join(["lamina", "train", str(run / "config.yaml"), "--resume"])
        raise UnexpectedError(
            error, folder, f"A checkpoint was kept; resume with: {command}" if kept else ""
        ) from error


class Commands(TyperGroup):
    """A command group that passes exceptions on to `run_command` unchanged.

    By itself, typer turns Ctrl-C into an exit code, an unexpected end of a file into an abort of the user's, and a
    broken pipe into silence.
    """

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        try:
            return super().make_context(*arguments, **settings)
        except KeyboardInterrupt as error:
            raise _Raised(error) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (_Raised, typer.Exit, TyperException):
            raise
        except BaseException as error:
            raise _Raised(_as_raised(error)) from None


class _Raised(BaseException):
    """Carries an exception through typer."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _EnoughRead(BaseException):
    """Nobody reads any more what rich prints."""


def run_command(command: Callable[[], object], as_json: bool) -> int:
    """Runs a command, reports the error that ended it, and returns the exit code.

    Args:
        command: Parses the arguments and runs; returns the exit code, or None for 0.
        as_json: Whether stdout must get exactly one JSON object.
    """
    with json_on_stdout(as_json):
        try:
            try:
                code = command()
                sys.stdout.flush()  # when the interpreter exits, nobody would be told that the disk is full
            except _Raised as raised:
                raise raised.error from None
        except BaseException as raised:
            error = _as_raised(raised)
            is_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE and _nobody_reads()
            if is_pipe or isinstance(error, _EnoughRead):
                return 1  # `| head` has read enough
            return _report(error, as_json)
    return code if isinstance(code, int) else 0


def _report(error: BaseException, as_json: bool) -> int:
    """Reports the error that ended a command, as far as the streams are open, and returns the exit code.

    One of several processes that a signal has ended leaves it to the command that started them.
    """
    try:
        code, details, message = _describe(error)
    except Exception as failure:  # reporting failed as well, perhaps for lack of memory
        code, text = 1, f"{type(error).__name__}, and {type(failure).__name__} while reporting it"
        details, message = {"type": "UnexpectedError", "message": text}, f"error: {text}"
    if is_interruption(error) and leave_words(code, details):
        return code
    with contextlib.suppress(OSError, ValueError):
        err.print(message, soft_wrap=True)
    leave_told()
    if as_json:
        with contextlib.suppress(OSError, ValueError):
            print_json({"error": details}, only_if_nothing_was_printed=True)
    return code


def _describe(error: BaseException) -> tuple[int, dict[str, object], str]:
    """Returns the exit code, the details for JSON, and the message in rich's markup."""
    match error:
        case KeyboardInterrupt():
            return 1, {"type": "Interrupted", "message": "interrupted"}, "[bold red]interrupted[/bold red]"
        case TyperException():
            message = error.format_message()
            hint = "\n[dim]See lamina --help, or lamina COMMAND --help.[/dim]"
            return 2, {"type": "UsageError", "message": message}, f"[bold red]error:[/bold red] {escape(message)}{hint}"
        case LaminaError():
            known = error
        case _:
            known = UnexpectedError(error, cache_folder() / ERRORS_FOLDER)
    mark, text = "stopped:" if isinstance(known, Interrupted) else "error:", str(known)
    if mark == "stopped:" and text.startswith("stopped "):  # "stopped by SIGTERM after step 3" has the word already
        mark, text = "stopped", text.removeprefix("stopped ")
    return known.exit_code, known.details(), f"[bold red]{mark}[/bold red] {escape(text)}"


def _reason(error: BaseException) -> str:
    """Returns a sentence, without a period, on what was raised and where."""
    name, said = type(error).__name__, ""
    with contextlib.suppress(Exception):  # some exceptions cannot even be converted to text
        said = " ".join(str(error).split())
    said = f"{said[:_MOST_LETTERS]} ..." if len(said) > _MOST_LETTERS else said
    if isinstance(error, MemoryError) or any(words in said.lower() for words in _MEMORY_WORDS):
        cause = f"out of memory ({said})" if said else "out of memory"
        return (
            f"{cause}. Fix: close other programs, or use less memory: shorter rows, smaller batches, a smaller "
            "base model"
        )
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        # Without a name, it is a stream, such as stdout.
        where = "output" if error.filename is None else str(error.filename)
        return str(StorageError.wrap(error, where, "reading or writing")).removesuffix(".")
    if isinstance(error, SystemExit):
        name, said = "exit of the process", f"a library requested it (exit code {error.code})"
    place = _place(error)
    return f"unexpected {name}{f': {said}' if said else ''}{f' (in {place})' if place else ''}".rstrip(".")


def _place(error: BaseException) -> str:
    """Returns the innermost line of lamina's code in the traceback."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_SOURCE)
    ]
    return f"{Path(frames[-1].filename).relative_to(_SOURCE)}:{frames[-1].lineno}" if frames else ""


def _write_details(error: BaseException, folder: Path) -> Path | None:
    with contextlib.suppress(Exception):  # even formatting it may take memory that is not available
        text = _details(error)
        for place in (folder, cache_folder() / ERRORS_FOLDER, Path(gettempdir())):
            path = place / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            with contextlib.suppress(OSError):
                files.write_bytes(path, text.encode("utf-8", "backslashreplace"))
                return path
    return None


def _details(error: BaseException) -> str:
    from importlib import metadata  # which takes longer to import than many commands

    versions = [f"lamina {__version__}", f"Python {platform.python_version()} on {platform.platform()}"]
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    trace = "".join(traceback.format_exception(error))
    return f"{shlex.join(sys.argv)}\nin {_working_folder()}\n{', '.join(versions)}\n\n{trace}"


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "a deleted folder"


def _as_raised(error: BaseException) -> BaseException:
    """Returns the error, or `_EnoughRead` for the exit that rich makes of a broken pipe, having put another there."""
    is_pipe = isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
    return _EnoughRead() if is_pipe else error


def _nobody_reads() -> bool:
    """Returns whether stdout or stderr is a pipe whose other end is closed."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                poll.register(stream.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    return True
