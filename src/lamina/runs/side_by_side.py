"""Two or more runs side by side: the settings that differ, the figures, and the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.charts import Chart, Table
from lamina.config import Config
from lamina.errors import ConfigError, Problem
from lamina.runs.curves import loss_lines
from lamina.runs.flat import flatten
from lamina.runs.run import Run, open_run

# The figures of a summary that runs are compared by.
_FIGURES = (
    "steps",
    "train_loss_last",
    "eval_loss_first",
    "eval_loss",
    "tokens_per_second",
    "peak_memory_bytes",
    "trainable_parameters",
)


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side. A notebook shows table and curves; `print` shows the table.

    Attributes:
        table: A row for each setting that differs, and for each figure; a column for each run.
        chart: The losses of all of them.
    """

    table: Table
    chart: Chart

    def __repr__(self) -> str:
        return repr(self.table)

    def _repr_html_(self) -> str:
        return f"{self.table._repr_html_()}{self.chart.svg()}"


def compare_runs(*runs: Run | str | Path) -> RunComparison:
    """Puts runs side by side: the settings that differ, their figures, and their losses.

    Args:
        runs: Two or more runs, or their directories.

    Raises:
        ConfigError: Fewer than two are given.
        RunError: There is no run at a path.
    """
    if len(runs) < 2:
        raise ConfigError(Problem("runs", f"compare_runs needs two runs or more, and got {len(runs)}", "give two"))
    opened = [open_run(run.path if isinstance(run, Run) else run) for run in runs]
    names = _names([run.path for run in opened])
    settings = [flat_settings(run.config) for run in opened]
    rows: list[dict[str, Any]] = []
    for key in sorted(set().union(*settings)):
        values = [_shown(each.get(key)) for each in settings]
        if any(value != values[0] for value in values):
            rows.append({"": key, **dict(zip(names, values, strict=True))})
    summaries = [{} if run.summary is None else run.summary.as_json() for run in opened]
    for figure in _FIGURES:
        values = [summary.get(figure) for summary in summaries]
        if any(value is not None for value in values):
            rows.append({"": figure, **dict(zip(names, values, strict=True))})
    lines = [line for name, run in zip(names, opened, strict=True) for line in loss_lines(list(run.events()), name)]
    return RunComparison(Table(["", *names], rows), Chart("Loss", "step", "loss", lines))


def flat_settings(config: Config) -> dict[str, Any]:
    """Returns every setting by its dotted name, without the run's folder."""
    return flatten(config.model_dump(mode="json", exclude={"output_dir"}))


def _names(paths: Sequence[Path]) -> list[str]:
    """The runs' last folders, or the whole paths where two have the same."""
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [f"{path} ({n})" for n, path in enumerate(paths, start=1)]


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
