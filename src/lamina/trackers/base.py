"""What a tracker is given, and what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

End = Literal["finished", "interrupted", "failed"]

# The project or experiment, unless the tracker's own environment variable names one.
PROJECT = "lamina"


@dataclass(frozen=True)
class TrackedRun:
    """A run, as trackers see it.

    Attributes:
        id: Names the run, and stays the same when it is resumed: letters and digits.
        name: A readable name, that of its folder.
        folder: The run directory; the tracker's own files belong below it.
        config: Its settings by dotted name.
        resumed: Whether it goes on after an earlier process.
    """

    id: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    resumed: bool


class Tracker(Protocol):
    """An open run of a tracker."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs figures of a step, such as `train/loss` and `eval/loss`. Steps never decrease."""
        ...

    def finish(self, end: End, summary: Mapping[str, Any]) -> None:
        """Ends the run.

        Args:
            end: How it ended.
            summary: The figures of a finished run; empty otherwise.
        """
        ...


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a summary."""
    return {
        key: float(value)
        for key, value in summary.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
