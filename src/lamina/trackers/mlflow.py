"""MLflow. `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME` work as everywhere."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from lamina.trackers.base import PROJECT, End, TrackedRun, numbers

PACKAGE = "mlflow"

_ID = "lamina.id"
# MLflow takes so many parameters at once, with values of so many letters.
_MOST_PARAMETERS, _MOST_LETTERS = 100, 500
_STATES: dict[End, str] = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class _Tracker:
    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run_id, metrics=[Metric(name, value, now, step) for name, value in metrics.items()]
        )

    def finish(self, end: End, summary: Mapping[str, Any]) -> None:
        figures = numbers(summary)
        if figures:
            self.log({f"summary/{name}": value for name, value in figures.items()}, int(figures.get("steps", 0)))
        self._client.set_terminated(self._run_id, status=_STATES[end])


def start(run: TrackedRun) -> _Tracker:
    """Creates a run, or goes on with the one that has the same id for a tag."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    experiment = client.get_experiment_by_name(name)
    experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
    found = client.search_runs([experiment_id], f"tags.`{_ID}` = '{run.id}'") if run.resumed else []
    if found:
        run_id = found[0].info.run_id
        client.update_run(run_id, status="RUNNING")
        return _Tracker(client, run_id)
    run_id = client.create_run(experiment_id, run_name=run.name, tags={_ID: run.id}).info.run_id
    parameters = [Param(key, str(value)[:_MOST_LETTERS]) for key, value in run.config.items()]
    for first in range(0, len(parameters), _MOST_PARAMETERS):
        client.log_batch(run_id, params=parameters[first : first + _MOST_PARAMETERS])
    return _Tracker(client, run_id)
