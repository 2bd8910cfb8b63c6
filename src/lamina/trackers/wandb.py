"""Weights & Biases. `WANDB_PROJECT`, `WANDB_ENTITY` and `WANDB_MODE=offline` work as everywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lamina.trackers.base import PROJECT, End, TrackedRun

PACKAGE = "wandb"


class _Tracker:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, end: End, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=0 if end == "finished" else 1)


def start(run: TrackedRun) -> _Tracker:
    """Opens a run, or goes on with the one of the same id."""
    import wandb

    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", run.name),
        id=run.id,
        resume="allow",
        dir=str(run.folder),
        config=dict(run.config),
    )
    return _Tracker(opened)
