"""The event log of a run: writes each event to `metrics.jsonl` and the trackers, and tells whoever looks on."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO

from lamina import files
from lamina.distributed.world import ALONE, World
from lamina.errors import ConfigError, Problem, StorageError
from lamina.runs import Run
from lamina.runs.events import Event, Measured, OnEvent, event_lines
from lamina.signals import StopRequest

# What writing to a closed pipe gives, and to a terminal that has gone.
_NOBODY_LOOKS = (errno.EPIPE, errno.EIO)


class EventLog:
    """Writes events to a run's `metrics.jsonl`, to its trackers, and to a callback.

    Args:
        run: Where `metrics.jsonl` lies.
        report_to: Trackers, as in `train.report_to`.
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
        report_to: Sequence[str],
        on_event: OnEvent | None,
        resumed_from: int,
        stop: StopRequest,
        world: World = ALONE,
    ) -> None:
        self._run = run
        self._on_event = on_event if world.is_first else None
        self._stop = stop
        self._file: TextIO | None = None
        self._tensorboard: Any = None
        if not world.is_first:
            return
        self._tensorboard = _tensorboard_writer(run) if "tensorboard" in report_to else None
        before = event_lines(run.metrics_path) if resumed_from >= 0 else ()
        files.write_text(run.metrics_path, "".join(f"{line}\n" for line, event in before if event.step <= resumed_from))
        self._file = self._open()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

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
        if self._tensorboard is not None and isinstance(event, Measured):
            for name, value in event.scalars().items():
                self._tensorboard.add_scalar(f"{event.kind}/{name}", value, event.step)
        self.show(event)

    def _open(self) -> TextIO:
        try:
            return self._run.metrics_path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError.wrap(error, self._run.metrics_path, "writing") from error


def _tensorboard_writer(run: Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            Problem(
                "train.report_to",
                "'tensorboard' needs the package tensorboard, which is not installed.",
                "pip install 'lamina[tensorboard]'",
            )
        ) from None
    return SummaryWriter(run.path / "tensorboard")
