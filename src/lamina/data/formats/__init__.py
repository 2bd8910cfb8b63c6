"""The shapes that a row may have, one file each, found by discovery.

A format's file defines `FIELDS` and `OPTIONAL_FIELDS` (the columns it reads), `detect(row)` and `parse(row)`, which
gives the messages of the row or raises `RowError`. The file's name is the format's name in the config.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lamina.errors import DataError

FORMATS: dict[str, ModuleType] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}")
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
    if not module.name.startswith("_")
}

# Enough rows to see a mixed file, few enough to be instant.
DETECT_ROWS = 200


def choose_format(rows: Sequence[Mapping[str, Any]], wanted: str, path: Path) -> ModuleType:
    """The format named by the config, or the only one that fits the first rows.

    Raises:
        DataError: No format fits, or several do.
    """
    if wanted != "auto":
        return FORMATS[wanted]
    seen = rows[:DETECT_ROWS]
    hits = {name: sum(module.detect(row) for row in seen) for name, module in FORMATS.items()}
    fitting = [name for name, count in hits.items() if count == len(seen)]
    if len(fitting) == 1:
        return FORMATS[fitting[0]]
    shapes = "; ".join(_shape(name, module) for name, module in FORMATS.items())
    if fitting:
        raise DataError(
            f"{path}: the rows fit more than one format: {', '.join(fitting)}. Fix: set data.format to one of them."
        )
    most = max(hits, key=lambda name: hits[name])
    if hits[most]:
        odd = next(number for number, row in enumerate(seen, 1) if not FORMATS[most].detect(row))
        raise DataError(
            f"{path}: rows have different shapes: most fit {most}, but row {odd} has the columns "
            f"{_columns(rows[odd - 1])}. Fix: give every row the same shape."
        )
    raise DataError(
        f"{path}: no known format; the columns are {_columns(rows[0])}. Known formats: {shapes}. "
        "Fix: map your columns, such as data.columns={prompt: YOUR_COLUMN, completion: YOUR_OTHER_COLUMN}."
    )


def rename_columns(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], path: Path) -> list[dict[str, Any]]:
    """Keeps only the mapped columns, under the names of the fields they stand for.

    Raises:
        DataError: A row lacks a mapped column; the message lists what it has.
    """
    renamed = []
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns.values() if column not in row]
        if missing:
            raise DataError(
                f"{path}: row {number} has no column {missing[0]!r}, which data.columns maps; "
                f"its columns are {_columns(row)}. Fix: correct data.columns or the row."
            )
        renamed.append({field: row[column] for field, column in columns.items()})
    return renamed


def _shape(name: str, module: ModuleType) -> str:
    optional = f"; optionally {', '.join(module.OPTIONAL_FIELDS)}" if module.OPTIONAL_FIELDS else ""
    return f"{name} ({', '.join(module.FIELDS)}{optional})"


def _columns(row: Mapping[str, Any]) -> str:
    return ", ".join(repr(str(key)) for key in list(row)[:12]) or "none"
