"""Rows that a source loses: a warning if there are many, an error if there are more than allowed.

Rows that the configuration itself excludes (`max_rows`, a weight below 1, a share of replay) do not count.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from lamina.config import DataConfig
from lamina.data.encoded_file import EncodedFile
from lamina.data.report import CHOSEN_REASONS, DROP_REASONS
from lamina.errors import DataError

# A source that loses a larger share than this gets a warning.
MUCH = 0.1

# Suggested values of `max_length` are multiples of this.
_STEP = 64


def lost_rows(files: Sequence[EncodedFile], config: DataConfig, positions: int | None = None) -> list[str]:
    """Returns a warning for each source that loses more than a tenth of its rows.

    Args:
        files: Files with complete reports; those of the same source are consecutive.
        config: The `data:` section.
        positions: The model's positions; None if unknown.

    Raises:
        DataError: A source loses a larger share of its rows than `data.max_dropped`.
    """
    warnings = []
    for _, group in groupby(files, key=lambda file: id(file.source)):
        of_source = list(group)
        counts = lost_by_reason(of_source)
        rows, lost = _looked_at(of_source), sum(counts.values())
        if lost <= MUCH * rows and lost <= config.max_dropped * rows:
            continue
        what = f"{of_source[0].source.path}: {lost_line(counts, rows)}"
        advice = list(_advice(of_source, counts, config, positions))
        if lost > config.max_dropped * rows:
            allowed = f"data.max_dropped={np.ceil(100 * lost / rows) / 100:g} accepts the loss"
            message = (
                f"{what}, and data.max_dropped={config.max_dropped:g} allows no more than {config.max_dropped:.0%}"
            )
            raise DataError(f"{message}. Fix: {'; '.join([*advice, allowed])}.")
        warnings.append(f"{what}. {'; '.join(advice)}.")
    return warnings


def lost_line(counts: Mapping[str, int], rows: int) -> str:
    """Returns a summary of the lost rows, by reason, most frequent first."""
    lost, in_order = sum(counts.values()), sorted(counts.items(), key=lambda each: -each[1])
    reasons = (f"{count:,}: {DROP_REASONS[reason]}" for reason, count in in_order)
    return f"{lost:,} of {rows:,} rows ({lost / rows:.0%}) are dropped ({'; '.join(reasons)})"


def lost_by_reason(files: Sequence[EncodedFile]) -> dict[str, int]:
    """Returns the number of lost rows, by reason."""
    counts: dict[str, int] = {}
    for file in files:
        for reason, rows in file.report.counts_dropped().items():
            if reason not in CHOSEN_REASONS:
                counts[reason] = counts.get(reason, 0) + rows
    return counts


def _looked_at(files: Sequence[EncodedFile]) -> int:
    """Returns the number of rows that the configuration includes."""
    chosen = sum(file.report.counts_dropped().get(reason, 0) for file in files for reason in CHOSEN_REASONS)
    return sum(file.report.rows for file in files) - chosen


def _advice(
    files: Sequence[EncodedFile], counts: dict[str, int], config: DataConfig, positions: int | None
) -> Iterator[str]:
    """Yields what to do about lost rows, for the most frequent reason first."""
    by_cause: dict[str, int] = {}
    for reason, count in counts.items():
        cause = reason if reason in ("longer_than_max_length", "no_supervised_tokens") else "incomplete"
        by_cause[cause] = by_cause.get(cause, 0) + count
    for cause in sorted(by_cause, key=lambda each: -by_cause[each]):
        if cause == "longer_than_max_length":
            lengths = np.concatenate([file.store.longest for file in files])
            enough = int(np.ceil(np.quantile(lengths, 1 - MUCH, method="higher") / _STEP)) * _STEP
            room = f"data.max_length={enough} has room for nine rows in ten"
            if positions is not None and enough > positions:  # it would be refused
                room = f"nine rows in ten have at most {enough:,} tokens, and the model has {positions:,} positions"
            uncut = any(file.whole_rows for file in files)
            yield room if uncut else f"{room}; data.overlong=split divides long rows into several examples"
        elif cause == "no_supervised_tokens":
            yield (
                f"data.train_on={config.train_on} and data.max_length={config.max_length} decide which tokens are "
                "in the loss"
            )
        else:
            path = shlex.quote(files[0].source.path)
            yield f"`lamina data check {path}` lists the incomplete rows; complete them, or correct data.columns"


def nothing_left(files: Sequence[EncodedFile], config: DataConfig, positions: int | None = None) -> str:
    """Returns the error message for a source without usable rows; `positions` are the model's, None if unknown."""
    counts = {reason: 0 for file in files for reason in file.report.dropped}
    for file in files:
        for reason, rows in file.report.counts_dropped().items():
            counts[reason] += rows
    reasons = "; ".join(f"{count} rows: {DROP_REASONS[reason]}" for reason, count in counts.items())
    fix = (
        "; ".join(_advice(files, lost_by_reason(files), config, positions))
        or "remove the settings that exclude the rows"
    )
    return f"{files[0].source.path}: there is no usable row: {reasons}. Fix: {fix}."
