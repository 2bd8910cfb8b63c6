"""Runs Python in a subprocess, so that its memory and its failures are its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lamina
from lamina.errors import Interrupted, StorageError, TrainingError
from lamina.signals import StopRequest

# Interval in seconds at which signals are checked.
_SECONDS = 0.2


def run_python(arguments: Sequence[str], given: str, log: Path, stop: StopRequest) -> dict[str, Any]:
    """Runs a Python process, and returns the JSON object in the last line of its stdout.

    Args:
        arguments: The interpreter's arguments.
        given: Text for its stdin.
        log: The file that its stderr is appended to.
        stop: A signal to this process, which is forwarded.

    Raises:
        TrainingError: The process failed, with its own message.
        Interrupted: A signal came; it was forwarded, and the process has ended.
        StorageError: The log cannot be written.
    """
    if stop.signal is not None:
        raise _interrupted(stop)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        errors = log.open("a", encoding="utf-8")
    except OSError as error:
        raise StorageError.wrap(error, log, "writing") from error
    with errors:
        # In its own session: Ctrl-C in the terminal reaches it through this process, once.
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(),
            start_new_session=True,
        )
        try:
            written = _wait(process, given, stop)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode == 0:
        return json.loads(written.splitlines()[-1])
    if stop.signal is not None:
        raise _interrupted(stop)
    raise TrainingError(_what_failed(process.returncode, written, log))


def _wait(process: subprocess.Popen[str], given: str, stop: StopRequest) -> str:
    """Waits for the process and returns its stdout; forwards a signal to it, once."""
    text, told = given or None, False
    while True:
        try:
            return process.communicate(text, timeout=_SECONDS)[0]
        except subprocess.TimeoutExpired:
            text = None  # later calls of communicate() must not send the input again
            if stop.signal is not None and not told:
                process.terminate()
                told = True


def _interrupted(stop: StopRequest) -> Interrupted:
    return Interrupted(f"stopped by {stop.signal}; finished work is kept. To continue, run the same command again")


def _what_failed(code: int, written: str, log: Path) -> str:
    lines = [line for line in written.splitlines() if line.startswith("{")]
    if lines:
        return str(json.loads(lines[-1]).get("error", {}).get("message", lines[-1]))
    if code < 0:
        return f"its process was killed by signal {-code} (9 is how Linux ends one that takes too much memory)"
    said = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return said[-1][:500] if said else f"exit code {code}"


def _environment() -> dict[str, str]:
    """Copies the environment, and makes this installation of lamina importable."""
    source = str(Path(lamina.__file__).parents[1])
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path}
