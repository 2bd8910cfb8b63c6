"""The run directory: where everything about one run lies, who may write there, and how the run ended."""

from lamina.runs.run import (
    ADAPTER_FOLDER,
    CHECKPOINT_FOLDER,
    FORMAT,
    LOCK_FILE,
    Run,
    check_start,
    comparable_settings,
    exclusive,
    keep_places,
    moved_places,
    open_run,
    recorded,
    run_of,
    start_run,
    timestamp,
)
from lamina.runs.side_by_side import RunComparison, compare_runs

__all__ = [
    "ADAPTER_FOLDER",
    "CHECKPOINT_FOLDER",
    "FORMAT",
    "LOCK_FILE",
    "Run",
    "RunComparison",
    "check_start",
    "comparable_settings",
    "compare_runs",
    "exclusive",
    "keep_places",
    "moved_places",
    "open_run",
    "recorded",
    "run_of",
    "start_run",
    "timestamp",
]
