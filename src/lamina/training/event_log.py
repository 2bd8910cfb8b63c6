"""The event log of a run: writes each event to `metrics.jsonl` and the trackers, and tells whoever looks on."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from lamina import files
from lamina.config import Config
from lamina.distributed.world import ALONE, World
from lamina.errors import Interrupted, StorageError
from lamina.runs import Run
from lamina.runs.events import Event, Note, OnEvent, event_lines
from lamina.runs.side_by_side import flat_settings
from lamina.signals import StopRequest
from lamina.trackers.base import TrackedRun
from lamina.trackers.open import OpenTrackers, check_trackers

# What writing to a closed pipe gives, and to a terminal that has gone.
_NOBODY_LOOKS = (errno.EPIPE, errno.EIO)


class EventLog:
    """Writes events to a run's `metrics.jsonl`, to its trackers, and to a callback.

    Args:
        run: Where `metrics.jsonl` lies.
        config: The run's configuration; `train.report_to` names its trackers.
        on_event: Called with each event; may be None. Where it can tell nobody any more (a closed pipe, a terminal that
            has gone), `stop` is asked for as by a signal, and it is not called again.
        resumed_from: Events of later steps are taken out of `metrics.jsonl`, because those steps will be taken again;
            -1 begins afresh.
        stop: To ask for the end of the run.
        world: The processes of the run; the first one writes and tells.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        on_event: OnEvent | None,
        resumed_from: int,
        stop: StopRequest,
        world: World = ALONE,
    ) -> None:
        self._run = run
        self._on_event = on_event if world.is_first else None
        self._stop = stop
        self._file: TextIO | None = None
        self._trackers: OpenTrackers | None = None
        if not world.is_first:
            return
        check_trackers(config.train.report_to)
        before = event_lines(run.metrics_path) if resumed_from >= 0 else ()
        files.write_text(run.metrics_path, "".join(f"{line}\n" for line, event in before if event.step <= resumed_from))
        self._file = self._open()
        if config.train.report_to:
            tracked = _tracked(run, flat_settings(config), resumed_from >= 0)
            warn = lambda message: self.emit(Note(max(resumed_from, 0), message=message))  # noqa: E731
            self._trackers = OpenTrackers(config.train.report_to, tracked, warn)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._trackers is not None:
            stopped = kind is not None and issubclass(kind, Interrupted | KeyboardInterrupt)
            self._trackers.close("finished" if kind is None else "interrupted" if stopped else "failed")
        if self._file is not None:
            self._file.close()

    def show(self, event: Event) -> None:
        """Tells the callback only: what is of interest while it happens, and not afterwards."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except OSError as error:
            if error.errno not in _NOBODY_LOOKS:
                raise
            self._on_event = None
            self._stop.signal = self._stop.signal or "SIGPIPE"

    def emit(self, event: Event) -> None:
        """Records an event, and shows it.

        Raises:
            StorageError: It cannot be written.
        """
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(event.as_json(), ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError.wrap(error, self._run.metrics_path, "writing") from error
        if self._trackers is not None:
            self._trackers.log(event)
        self.show(event)

    def _open(self) -> TextIO:
        try:
            return self._run.metrics_path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError.wrap(error, self._run.metrics_path, "writing") from error


def _tracked(run: Run, config: Mapping[str, Any], resumed: bool) -> TrackedRun:
    """The run for trackers. Its id is made of when it was first started, and of its name."""
    name = run.path.resolve().name
    identity = f"{run.manifest.started} {name}"
    return TrackedRun(hashlib.sha256(identity.encode()).hexdigest()[:12], name, run.path, config, resumed)
