"""The trackers of one run: opens them, tells them what happens, and goes on without one that fails."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lamina import plugins
from lamina.errors import ConfigError, Problem
from lamina.progress import Notify
from lamina.runs.events import Evaluation, Event, Finished, Measured
from lamina.trackers.base import End, TrackedRun, Tracker

FIELD = "train.report_to"


def check_trackers(names: Sequence[str]) -> None:
    """Checks that the packages of trackers are installed.

    Raises:
        ConfigError: One is not, or a plug-in cannot be imported.
    """
    for name in names:
        package = getattr(plugins.load_member("trackers", name), "PACKAGE", None)
        if package is not None and importlib.util.find_spec(package) is None:
            message = f"{name!r} needs the package {package}, which is not installed"
            raise ConfigError(Problem(FIELD, message, f"pip install {package}, or remove it from {FIELD}"))


class OpenTrackers:
    """The trackers of a run.

    Args:
        names: As in `train.report_to`.
        run: What they track.
        warn: Told of a tracker that failed.
    """

    def __init__(self, names: Sequence[str], run: TrackedRun, warn: Notify) -> None:
        self._warn = warn
        self._open: dict[str, Tracker] = {}
        self._summary: Mapping[str, Any] = {}
        for name in dict.fromkeys(names):
            self._try(name, lambda name=name: self._start(name, run))

    def log(self, event: Event) -> None:
        """Passes the figures of an event on, if it has any."""
        if isinstance(event, Finished):
            self._summary = event.summary.as_json()
        if isinstance(event, Measured):
            metrics = metrics_of(event)
            for name, tracker in list(self._open.items()):
                self._try(name, lambda tracker=tracker: tracker.log(metrics, event.step))

    def close(self, end: End) -> None:
        """Ends the run in every tracker."""
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.finish(end, self._summary))
        self._open.clear()

    def _start(self, name: str, run: TrackedRun) -> None:
        self._open[name] = plugins.load_member("trackers", name).start(run)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:  # whatever it is, the run is worth more
            self._open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._warn(f"warning: the tracker {name} failed, and the run goes on without it ({reason}).")


def metrics_of(event: Measured) -> dict[str, float]:
    """Returns the figures of an event by the names that trackers show: `train/loss`, `eval/loss`."""
    side = "eval" if isinstance(event, Evaluation) else "train"
    return {f"{side}/{name.removeprefix('eval_')}": value for name, value in event.scalars().items()}
