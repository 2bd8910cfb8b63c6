"""Reads the rows of a `.json` or `.jsonl` file, and says file and row where it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lamina.errors import ConfigError, DataError, Problem, StorageError

Row = dict[str, Any]


def read_rows(path: Path, field: str = "data.train") -> list[Row]:
    """Reads every row of a JSON array or a JSON-lines file (which of them is seen from the content).

    Args:
        path: The file.
        field: The configuration field that named it, for the error.

    Raises:
        ConfigError: The file does not exist.
        DataError: It is empty, not UTF-8, or a row is not a JSON object.
    """
    text = _read_text(path, field)
    rows = list(_array_rows(text, path) if text.lstrip().startswith("[") else _line_rows(text, path))
    if not rows:
        raise DataError(f"{path}: the file holds no rows. Fix: give a file with at least one JSON object.")
    return rows


def _read_text(path: Path, field: str) -> str:
    if not path.exists():
        raise ConfigError(Problem(field, f"{path} does not exist", "check the path; it is relative to where you run"))
    if path.is_dir():
        raise ConfigError(Problem(field, f"{path} is a folder", "name a .json or .jsonl file in it"))
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8. Fix: save the file as UTF-8.") from None
    except OSError as error:
        raise StorageError.wrap(error, path, "reading") from error


def _line_rows(text: str, path: Path) -> Iterator[Row]:
    row = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row += 1
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{path}: row {row} (line {number}) is not JSON: {reason}. The line begins {line.strip()[:60]!r}. "
                "Fix: correct or remove that line; every line must be one JSON object."
            ) from None
        yield _object(value, path, row)


def _array_rows(text: str, path: Path) -> Iterator[Row]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise DataError(
            f"{path}: not JSON: {reason}. Fix: the file must be one JSON array of objects, or one JSON object a line."
        ) from None
    for row, value in enumerate(values, start=1):
        yield _object(value, path, row)


def _object(value: Any, path: Path, row: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: row {row} is a {type(value).__name__}, not an object. "
            'Fix: every row must be an object such as {"prompt": "...", "completion": "..."}.'
        )
    return value
