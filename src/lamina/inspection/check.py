"""`lamina data check`: every check over every row of a file or of a run's data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lamina.data.check.examine import examine
from lamina.data.check.findings import CheckReport
from lamina.data.check.fix import FixLog, fix_rows
from lamina.data.check.settings import CheckSettings
from lamina.inspection.rows import Rows
from lamina.inspection.target import Target
from lamina.models.source import Notify


def check_data(
    target: Target, notify: Notify, progress: Callable[[int], None], fixed: Path | None = None
) -> tuple[CheckReport, FixLog | None]:
    """Examines data, and writes a cleaned copy if asked to.

    Args:
        target: Which data, for which run.
        notify: Told what is being done.
        progress: Called with the number of rows seen so far.
        fixed: Where a cleaned file goes; its log goes beside it.

    Returns:
        The report, and what was changed in the cleaned file.

    Raises:
        ConfigError: A file does not exist.
        DataError: None of the files has rows.
        StorageError: The cleaned file cannot be written.
    """
    rows = Rows(target, target.template(notify))
    data = target.data
    settings = CheckSettings(
        max_length=data.max_length,
        overlong=data.overlong,
        tokenizer=rows.template.tokenizer if rows.template else None,
        batch_size=target.batch_size,
        packing=data.packing,
        seed=target.seed,
        progress=progress,
        has_eval=rows.has_eval,
    )
    report = examine(rows, settings)
    report.files = list(rows.files)
    if fixed is None:
        return report, None
    notify(f"Writing {fixed} ...")
    plain = Rows(target, None)
    return report, fix_rows(plain, report, fixed)
