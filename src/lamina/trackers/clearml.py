"""ClearML. Its configuration file and `CLEARML_*` variables work as everywhere; `CLEARML_OFFLINE_MODE=1` writes a
folder to upload later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lamina.trackers.base import PROJECT, End, TrackedRun, numbers

PACKAGE = "clearml"


class _Tracker:
    def __init__(self, task: Any) -> None:
        self._task = task
        self._logger = task.get_logger()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            title, _, series = name.rpartition("/")
            self._logger.report_scalar(title=title or series, series=series, value=value, iteration=step)

    def finish(self, end: End, summary: Mapping[str, Any]) -> None:
        for name, value in numbers(summary).items():
            self._logger.report_single_value(name, value)
        if end == "failed":
            self._task.mark_failed()
        self._task.close()


def start(run: TrackedRun) -> _Tracker:
    """Opens a task, or goes on with the one of the same name."""
    from clearml import Task

    task = Task.init(
        project_name=os.environ.get("CLEARML_PROJECT", PROJECT),
        task_name=os.environ.get("CLEARML_TASK", f"{run.name}-{run.id}"),
        continue_last_task=0 if run.resumed else False,
        reuse_last_task_id=False,
        auto_connect_frameworks=False,
        auto_connect_arg_parser=False,
        auto_resource_monitoring=False,
    )
    task.connect(dict(run.config), name="lamina")
    return _Tracker(task)
