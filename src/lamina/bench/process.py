"""Runs a side in a process of its own: JSON in on stdin, one line of JSON out on stdout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lamina
from lamina.errors import BenchError

# Time limit of a side in seconds; a side that hangs has failed.
SIDE_SECONDS = 3600.0


def run_module(module: str, job: Mapping[str, Any], python: str | None = None) -> dict[str, Any]:
    """Runs `python -m module` with a job on stdin.

    Args:
        module: Prints its result as the last line of stdout.
        job: Plain data.
        python: The interpreter; by default this one.

    Returns:
        The result, as plain data.

    Raises:
        BenchError: It failed; the message is the end of what it wrote.
    """
    command = [python or sys.executable, "-m", module]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(job),
            capture_output=True,
            text=True,
            check=False,
            env=_environment(),
            timeout=SIDE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"it took more than {SIDE_SECONDS:.0f} s.") from None
    except OSError as error:
        raise BenchError(f"{command[0]} cannot be started: {error}") from None
    if done.returncode:
        raise BenchError(_last_words(done.stderr) or f"exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def leave_with_parent(parent: int) -> None:
    """Ends this process if its parent has died: nobody would read the result, and it would disturb others."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _environment() -> Mapping[str, str]:
    """This environment, in which the worker finds this lamina whatever interpreter runs it, and nothing is fetched."""
    source = str(Path(lamina.__file__).parents[1])
    path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **offline, "PYTHONPATH": path}


def _last_words(text: str) -> str:
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
