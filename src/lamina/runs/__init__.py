"""The run directory: where everything about one run lies, who may write there, and how the run ended."""

from lamina.runs.run import (
    ADAPTER_FOLDER,
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
    start_run,
    timestamp,
)

__all__ = [
    "ADAPTER_FOLDER",
    "FORMAT",
    "LOCK_FILE",
    "Run",
    "check_start",
    "comparable_settings",
    "exclusive",
    "keep_places",
    "moved_places",
    "open_run",
    "recorded",
    "start_run",
    "timestamp",
]
