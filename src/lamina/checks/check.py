"""`lamina data check`: runs every check over every row of a file or of a run's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lamina.checks.examine import examine
from lamina.checks.findings import CheckReport
from lamina.checks.fix import FixLog, fix_rows
from lamina.checks.rows import Rows
from lamina.checks.settings import CheckSettings
from lamina.checks.target import Target
from lamina.errors import ConfigError, Problem
from lamina.losses.base import build_loss
from lamina.progress import Notify


def check_data(
    target: Target, notify: Notify, progress: Callable[[int], None], fixed: Path | None = None
) -> tuple[CheckReport, FixLog | None]:
    """Checks data, and writes a cleaned copy if requested.

    Args:
        target: The data, and the run it is for.
        notify: Reports progress.
        progress: Called with the number of rows checked so far.
        fixed: Path of the cleaned file; its log goes next to it.

    Returns:
        The report, and the log of changes in the cleaned file.

    Raises:
        ConfigError: A file does not exist, or `fixed` would need to contain rows in several formats.
        DataError: None of the files has rows.
        StorageError: The cleaned file cannot be written.
    """
    if fixed is not None:
        _check_shapes(Rows(target, None))
    rows = Rows(target, target.template(notify))
    data = target.data
    settings = CheckSettings(
        max_length=target.max_length(notify),
        overlong=data.overlong,
        tokenizer=rows.template.tokenizer if rows.template else None,
        batch_size=target.batch_size,
        packing=data.packing,
        seed=target.seed,
        progress=progress,
        kinds=build_loss(target.loss).sequences.kinds if target.is_run else None,
        has_eval=rows.has_eval,
        wrapped=data.packing_strategy == "wrapped",
        embedding_rows=target.embedding_rows(notify, rows.template),
        max_dropped=data.max_dropped,
        positions=target.positions(notify),
    )
    report = examine(rows, settings)
    report.files = list(rows.files)
    if fixed is None:
        return report, None
    notify(f"Writing {fixed} ...")
    plain = Rows(target, None)
    return report, fix_rows(plain, report, fixed)


def _check_shapes(rows: Rows) -> None:
    """Checks that all training files have the same format and columns, since they go into one cleaned file."""
    shapes = list(rows.shapes())
    first = shapes[0] if shapes else None
    other = next((shape for shape in shapes if shape[1:] != shapes[0][1:]), None)
    if first and other:
        told = " and ".join(f"{name} ({_told(format_name, columns)})" for name, format_name, columns in (first, other))
        message = f"writes one file, but the training files have different formats: {told}"
        raise ConfigError(Problem("--fix", message, "clean them one at a time"))


def _told(format_name: str, columns: dict[str, str]) -> str:
    mapped = ", ".join(f"{field}: {column}" for field, column in columns.items())
    return f"{format_name}, with {mapped}" if mapped else format_name
