"""TensorBoard: event files in the run's folder, `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.trackers.base import End, TrackedRun

PACKAGE = "tensorboard"


class _Tracker:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self, end: End, summary: Mapping[str, Any]) -> None:
        self._writer.close()


def start(run: TrackedRun) -> _Tracker:
    """Opens a writer."""
    from torch.utils.tensorboard import SummaryWriter

    return _Tracker(SummaryWriter(str(run.folder / "tensorboard")))
