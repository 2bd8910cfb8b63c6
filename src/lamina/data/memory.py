"""Rows in memory as a source: written to a file once, and read as any other file.

A run's data is then in the run, so that it can be resumed, evaluated and moved like every other run, and every row is
checked, cached and accounted for in the same way.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lamina import files
from lamina.config import SourceConfig
from lamina.errors import DataError


def source_of_rows(rows: Iterable[Mapping[str, Any]], name: str, folder: Path) -> SourceConfig:
    """Returns a source with the rows, which are written to `folder/NAME.jsonl` unless they are there already.

    Args:
        rows: Column -> value. Arrays and scalars of numpy, dates, and NaN become what JSON has for them.
        name: Name of the file, without a suffix.
        folder: Where it is kept, such as the run's own folder.

    Raises:
        DataError: There are no rows, or one is not a mapping of column names to values.
        StorageError: The file cannot be written.
    """
    lines = [_line(row, number, name) for number, row in enumerate(rows, start=1)]
    if not lines:
        raise DataError(f"{name}: there are no rows. Fix: give at least one.")
    path, text = folder / f"{name}.jsonl", "\n".join(lines) + "\n"
    if not (path.is_file() and path.read_text(encoding="utf-8") == text):
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(path, text)
    return SourceConfig(path=str(path))


def _line(row: Mapping[str, Any], number: int, name: str) -> str:
    if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
        raise DataError(
            f"{name}: row {number} is {type(row).__name__}, not a mapping of column names to values. Fix: give rows "
            'such as {"prompt": "...", "completion": "..."}.'
        )
    try:
        return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: row {number} cannot be stored as JSON ({error}). Fix: convert its values.") from None


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    listed = getattr(value, "tolist", None)  # of an array or a scalar of numpy or torch
    return _plain(listed()) if callable(listed) else value
