"""Tells how far the runs of a fleet are, from their event logs, which all machines write to the same file system."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lamina.fleet.task import Task
from lamina.progress import Notify
from lamina.runs import Run

# Interval of the lines of progress, in seconds.
LINE_SECONDS = 15.0
# At most so many runs are named in a line.
_MOST = 8
# The last events are within so many bytes of the log's end; the first ones, of its start.
_END_BYTES = 16 * 1024
_START_BYTES = 256 * 1024


class Watch:
    """Notifies of the steps of all running tasks, from time to time."""

    def __init__(self, notify: Notify) -> None:
        self._notify = notify
        self._last = time.monotonic()
        self._totals: dict[Path, int] = {}

    def look(self, tasks: Sequence[Task]) -> None:
        """Notifies, if it is time for it and there is something to say."""
        if time.monotonic() < self._last + LINE_SECONDS:
            return
        self._last = time.monotonic()
        told = [text for task in tasks if (text := self._text(task))]
        if told:
            more = f"; {len(told) - _MOST} more" if len(told) > _MOST else ""
            self._notify(f"running: {'; '.join(told[:_MOST])}{more}")

    def _text(self, task: Task) -> str:
        if task.run is None:
            return ""
        log = Run(task.run).metrics_path
        step = next((event for event in reversed(_events(log, -_END_BYTES)) if event.get("event") == "step"), None)
        if step is None:
            return ""
        if log not in self._totals:
            start = next((event for event in _events(log, _START_BYTES) if event.get("event") == "start"), None)
            if start is not None:
                self._totals[log] = start["total_steps"]
        total = f"/{self._totals[log]}" if log in self._totals else ""
        return f"{task.name} step {step['step']}{total}, loss {step['loss']:.4f}"


def _events(path: Path, size: int) -> list[dict[str, Any]]:
    """Reads the events within so many bytes from the start of a log, or from its end if `size` is negative."""
    found: list[dict[str, Any]] = []
    with suppress(OSError), path.open("rb") as file:
        if size < 0:
            file.seek(max(0, file.seek(0, 2) + size))
        for line in file.read(abs(size)).splitlines():
            with suppress(ValueError):  # the first and the last may be parts of lines
                event = json.loads(line)
                found += [event] if isinstance(event, dict) else []
    return found
