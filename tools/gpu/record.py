"""What a step writes: a proof or a figure a line, to disk at once."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

RESULTS, READABLE = "results.jsonl", "results.txt"


class Failed(Exception):
    """A step cannot go on, and that is a failure."""


class Lacking(Exception):
    """A step cannot run here; the text says what is missing."""


class Record:
    """The results of one step."""

    def __init__(self, out: Path, step: str) -> None:
        self._out = out
        self._step = step
        self.failures = 0

    def prove(self, what: str, value: float, allowed: float = 0.0) -> None:
        """Holds a number against the most that it may be; NaN never passes."""
        passed = math.isfinite(value) and value <= allowed
        self.failures += not passed
        self._write("proof", what, value, allowed=allowed, passed=passed)
        bound = f"{value:.3g}, allowed {allowed:.3g}"
        say(self._out, f"  {'ok    ' if passed else 'FAILED'} {what}: {bound}")

    def tell(self, what: str, value: Any) -> None:
        """A figure or a fact."""
        self._write("figure", what, value)
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        say(self._out, f"         {what}: {shown}")

    def _write(self, kind: str, what: str, value: Any, **more: Any) -> None:
        plain = None if isinstance(value, float) and not math.isfinite(value) else value
        append(self._out, {"step": self._step, "kind": kind, "what": what, "value": plain, **more})


def append(out: Path, line: dict[str, Any]) -> None:
    """One JSON object, on disk when this returns."""
    _add(out / RESULTS, json.dumps({"at": round(time.time(), 2), **line}))


def say(out: Path, text: str) -> None:
    """One readable line: printed, and on disk."""
    print(text, flush=True)
    _add(out / READABLE, text)


def read(out: Path) -> list[dict[str, Any]]:
    """All lines so far."""
    path = out / RESULTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _add(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
