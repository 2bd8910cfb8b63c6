"""Trackio: a local database, shown with `trackio show`. `TRACKIO_PROJECT`, `TRACKIO_SPACE_ID` and `TRACKIO_DIR` work
as everywhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from lamina.trackers.base import PROJECT, End, TrackedRun, numbers

PACKAGE = "trackio"


class _Tracker:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, end: End, summary: Mapping[str, Any]) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            if figures := numbers(summary):
                self._run.log({f"summary/{name}": value for name, value in figures.items()}, step=int(figures["steps"]))
            self._run.finish()


def start(run: TrackedRun) -> _Tracker:
    """Opens a run, or goes on with the one of the same name."""
    import trackio

    with contextlib.redirect_stdout(sys.stderr):  # it says where its dashboard is
        opened = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{run.id}",
            config=dict(run.config),
            resume="allow",
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            embed=False,
        )
    return _Tracker(opened)
