"""Runs a command, and turns whatever ends it into one message, an exit code and, with `--json`, one JSON object.

Errors that lamina raises on purpose say all there is to say. Any other exception is told in one line too; its traceback
goes to a file, in the run's folder where there is one, else in the cache's `errors/`.
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
from importlib import metadata
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
from lamina.errors import Interrupted, LaminaError, StorageError
from lamina.version import __version__

ERRORS_FOLDER = "errors"
_SOURCE = Path(lamina.__file__).parent
_PACKAGES = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "datasets", "numpy", "typer", "rich")
# Of another library's message, which may be pages long; the file has all of it.
_MOST_LETTERS = 400
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


class UnexpectedError(LaminaError):
    """Something that lamina did not foresee.

    Args:
        error: What was raised.
        folder: Where the file with the traceback goes, if it can be written there.
        advice: A sentence on what to do now.

    Attributes:
        path: That file; None where no place could be written to.
    """

    def __init__(self, error: BaseException, folder: Path, advice: str = "") -> None:
        self.cause = type(error).__name__
        self.path = _write_details(error, folder)
        where = f"The traceback is in {self.path}" if self.path else "Its traceback could not be written anywhere"
        super().__init__(f"{_reason(error)}. {where}.{f' {advice}' if advice else ''}")

    def details(self) -> dict[str, object]:
        return {**super().details(), "cause": self.cause, "traceback": str(self.path) if self.path else None}


@contextlib.contextmanager
def tracebacks_in(run: Path) -> Iterator[None]:
    """Inside the block, what was not foreseen leaves its traceback in the run's folder, if there is one by then."""
    try:
        yield
    except LaminaError:
        raise
    except Exception as error:
        folder = run / ERRORS_FOLDER if run.is_dir() else cache_folder() / ERRORS_FOLDER
        kept = any((run / "checkpoints").glob("*"))
        command = shlex.join(["lamina", "train", str(run / "config.yaml"), "--resume"])
        raise UnexpectedError(error, folder, f"A checkpoint is kept; go on with: {command}" if kept else "") from error


class Commands(TyperGroup):
    """A group of commands whose exceptions reach `run_command` as they were raised.

    typer by itself makes an exit code of Ctrl-C, a question of the user's of a file that ends too early, and silence of
    every closed pipe.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (_Raised, typer.Exit, TyperException):
            raise
        except BaseException as error:
            raise _Raised(error) from None


class _Raised(BaseException):
    """Carries an exception past typer."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


def run_command(command: Callable[[], object], as_json: bool) -> int:
    """Runs a command, reports what ended it, and gives the exit code.

    Args:
        command: Parses and runs; what it returns is the exit code, None for 0.
        as_json: Whether stdout gets exactly one JSON object.
    """
    with json_on_stdout(as_json):
        try:
            try:
                code = command()
                sys.stdout.flush()  # at the interpreter's end, nobody would be told that the disk is full
            except _Raised as raised:
                raise raised.error from None
        except BaseException as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE and _nobody_reads():
                return 1  # `| head` has seen enough
            return _report(error, as_json)
    return code if isinstance(code, int) else 0


def _report(error: BaseException, as_json: bool) -> int:
    """Says what ended a command, as far as anybody listens, and gives the exit code."""
    try:
        code, details, message = _describe(error)
    except Exception as failure:  # to tell of it failed as well, for want of memory perhaps
        code, text = 1, f"{type(error).__name__}, and {type(failure).__name__} on telling of it"
        details, message = {"type": "UnexpectedError", "message": text}, f"error: {text}"
    with contextlib.suppress(OSError, ValueError):
        err.print(message, soft_wrap=True)
    if as_json:
        with contextlib.suppress(OSError, ValueError):
            print_json({"error": details}, only_if_nothing_was_printed=True)
    return code


def _describe(error: BaseException) -> tuple[int, dict[str, object], str]:
    """Exit code, what JSON says, and the message in rich's markup."""
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
    mark = "stopped" if isinstance(known, Interrupted) else "error"
    return known.exit_code, known.details(), f"[bold red]{mark}:[/bold red] {escape(str(known))}"


def _reason(error: BaseException) -> str:
    """One sentence, without its full stop, on what was raised and where."""
    name, said = type(error).__name__, ""
    with contextlib.suppress(Exception):  # some exceptions cannot even be printed
        said = " ".join(str(error).split())
    said = f"{said[:_MOST_LETTERS]} ..." if len(said) > _MOST_LETTERS else said
    if isinstance(error, MemoryError) or any(words in said.lower() for words in _MEMORY_WORDS):
        cause = f"memory ran out ({said})" if said else "memory ran out"
        return (
            f"{cause}. Fix: end other programs, or ask for less at once: shorter rows, smaller batches, a smaller base"
        )
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        # Without a name it is a stream, such as stdout.
        where = "output" if error.filename is None else str(error.filename)
        return str(StorageError.wrap(error, where, "reading or writing")).removesuffix(".")
    if isinstance(error, SystemExit):
        name, said = "end of the process", f"a library asked for it (exit code {error.code})"
    place = _place(error)
    return f"unexpected {name}{f': {said}' if said else ''}{f' (in {place})' if place else ''}".rstrip(".")


def _place(error: BaseException) -> str:
    """The innermost line of lamina's that the exception passed."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_SOURCE)
    ]
    return f"{Path(frames[-1].filename).relative_to(_SOURCE)}:{frames[-1].lineno}" if frames else ""


def _write_details(error: BaseException, folder: Path) -> Path | None:
    with contextlib.suppress(Exception):  # even to put it together may take memory that is not there
        text = _details(error)
        for place in (folder, cache_folder() / ERRORS_FOLDER, Path(gettempdir())):
            path = place / f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
            with contextlib.suppress(OSError):
                files.write_bytes(path, text.encode("utf-8", "backslashreplace"))
                return path
    return None


def _details(error: BaseException) -> str:
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
        return "a folder that is gone"


def _nobody_reads() -> bool:
    """Whether stdout or stderr is a pipe whose other end was closed."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    with contextlib.suppress(OSError, ValueError):
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                poll.register(stream.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    return True
