"""Rows in memory, of any of the usual kinds, as a file of JSON lines whose name has its digest.

Training reads files alone, so that a run says exactly what it was trained on and can be resumed and evaluated later.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from lamina import files
from lamina.data.read.columns import check_names, classes_in, classes_of, with_classes, without_gaps
from lamina.data.read.times import TIMES, time_text
from lamina.errors import DataError, StorageError

# What a function of the user's makes of a row: a text, a conversation, or another row.
Formatting = Callable[[dict[str, Any]], str | list[dict[str, Any]] | dict[str, Any]]

_DIGITS = 12

# Formats of a `datasets.Dataset` in which a row is a table of its own.
_TABLE_FORMATS = ("pandas", "arrow", "polars")

# By numpy's kind of dates and of differences: the unit in which it gives them as Python's.
_COUNTED = {"M": "datetime64[us]", "m": "timedelta64[us]"}


def store_rows(data: object, folder: Path, name: str, formatting: Formatting | None = None) -> Path:
    """Writes rows to `folder/name-DIGEST.jsonl`, unless that is there.

    Args:
        data: A `datasets.Dataset`, a DataFrame of pandas or polars, an Arrow table, a dictionary of columns, or an
            iterable of dictionaries or of texts.
        folder: Where to write.
        name: How the file's name begins.
        formatting: Makes a text, a conversation or another row of each row.

    Raises:
        DataError: There are no rows, or one has a value that is no text, number or structure of these, or `formatting`
            fails on one; it is named.
        StorageError: The file cannot be written.
    """
    lines = [
        json.dumps(formatted(row, formatting, f"{name}, row {number}"), ensure_ascii=False)
        for number, row in enumerate(rows_in(data, name), start=1)
    ]
    if not lines:
        raise DataError(f"{name}: has no rows. Fix: give at least one row.")
    content = ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")
    path = folder / f"{name}-{hashlib.sha256(content).hexdigest()[:_DIGITS]}.jsonl"
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError.wrap(error, folder, "creating the folder") from error
        files.write_bytes(path, content)
    return path


def rows_in(data: object, name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of anything in memory that has rows, as plain data.

    Args:
        data: As for `store_rows`.
        name: What to call it in errors.

    Raises:
        DataError: It has no rows that can be understood.
    """
    for number, row in enumerate(_raw_rows(data, name), start=1):
        where = f"{name}, row {number}"
        if isinstance(row, str):
            yield {"text": row}
        elif isinstance(row, list | tuple) and row and all(isinstance(turn, Mapping) for turn in row):
            yield {"messages": _plain(row, where, "messages")}
        elif isinstance(row, Mapping):
            yield {str(key): _plain(value, where, str(key)) for key, value in row.items()}
        else:
            raise DataError(
                f"{where}: is a {type(row).__name__}, not a dictionary of columns, a list of messages, or a text. Fix: "
                "make it a dictionary, such as {'prompt': ..., 'completion': ...}."
            )


def is_columns(data: object) -> bool:
    """Returns whether `data` is a dictionary of columns with equally many values, as `Dataset.from_dict` takes it, and
    not one of splits, whose rows are dictionaries."""
    if not isinstance(data, Mapping) or not data:
        return False
    values = list(data.values())
    if not all(map(is_column, values)) or len({len(column) for column in values}) > 1:
        return False
    return not all(isinstance(item, Mapping) for column in values for item in column)


def is_column(value: Any) -> bool:
    """Returns whether `value` is a list, or an array or series with one dimension."""
    return isinstance(value, list | tuple) or (hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1)


def _raw_rows(data: Any, name: str) -> Iterable[Any]:
    if is_columns(data):
        return (dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True))
    if hasattr(data, "iter_rows") and hasattr(data, "columns"):  # polars
        return map(without_gaps, data.iter_rows(named=True))
    if hasattr(data, "to_dict") and hasattr(data, "columns") and hasattr(data, "iloc"):  # pandas
        return map(without_gaps, _of_frame(data, name))
    if hasattr(data, "to_pylist"):  # Arrow
        if not hasattr(data, "schema"):  # a column of its own
            return map(without_gaps, data.to_pylist())
        check_names(data.schema.names, name)
        classes = classes_in(data.schema)
        return (with_classes(without_gaps(row), classes) for row in data.to_pylist())
    if hasattr(data, "features") and hasattr(data, "with_format"):  # datasets
        is_table = (getattr(data, "format", None) or {}).get("type") in _TABLE_FORMATS
        classes = classes_of(data.features)
        return (with_classes(without_gaps(row), classes) for row in (data.with_format(None) if is_table else data))
    is_list = not isinstance(data, Mapping | str | bytes)
    if is_list and hasattr(data, "__iter__"):
        return data
    if is_list and hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # a Dataset of torch
        return (data[place] for place in range(len(data)))
    raise DataError(
        f"{name}: rows cannot be read from a {type(data).__name__}. Fix: give a list of dictionaries, a "
        "datasets.Dataset, a DataFrame, or the path of a file."
    )


def _of_frame(frame: Any, name: str) -> list[dict[str, Any]]:
    """Returns the rows of a DataFrame of pandas; an index that has a name is a column, too."""
    if not frame.columns.is_unique:
        repeated = sorted({str(column) for column in frame.columns[frame.columns.duplicated()]})
        raise DataError(f"{name}: has several columns with the name {repeated[0]!r}. Fix: rename or drop all but one.")
    named = [level for level in frame.index.names if level is not None and level not in frame.columns]
    return (frame.reset_index(level=named) if named else frame).to_dict("records")


def _plain(value: Any, where: str, column: str) -> Any:
    """Returns a value as JSON has it; None for a gap (None, NaN, NaT, pandas.NA)."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where, f"{column}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, where, column) for item in value]
    if isinstance(value, Enum):
        return _plain(value.value, where, column)
    if type(value).__name__ in ("NAType", "NaTType"):  # the gaps of pandas
        return None
    if isinstance(value, TIMES):
        return time_text(value)
    if isinstance(value, decimal.Decimal | Path | uuid.UUID | datetime.timedelta):
        return str(value)
    if type(value).__module__ == "numpy" and (unit := _COUNTED.get(value.dtype.kind)):  # nanoseconds become integers
        value = value.astype(unit)
    if hasattr(value, "tolist"):  # arrays, tensors and scalars of numpy and torch
        return _plain(value.tolist(), where, column)
    raise DataError(
        f"{where}: the column {column!r} has a {type(value).__name__}, which is no text, number or list of these. "
        "Fix: leave the column out, or make it text, for example with formatting_func."
    )


def formatted(row: dict[str, Any], formatting: Formatting | None, where: str) -> dict[str, Any]:
    """Returns a row as a function of the user's makes it.

    Args:
        row: The row as plain data.
        formatting: The function, which gets no gaps; None leaves the row as it is.
        where: What to call the row in errors.

    Raises:
        DataError: The function fails, or returns something else than a text, a list of messages or a row.
    """
    if formatting is None:
        return row
    row = {column: value for column, value in row.items() if value is not None}  # or a text would have "None" in it
    try:
        made = formatting(row)
    except Exception as error:
        columns = ", ".join(map(repr, row)) or "none"
        raise DataError(
            f"{where}: formatting_func fails with {type(error).__name__}: {error}. Its columns are {columns}. Fix: "
            "correct the function, or the row; gaps (None, NaN) are not among a row's columns."
        ) from error
    if isinstance(made, str):
        return {"text": made}
    if isinstance(made, Mapping):
        return {str(key): _plain(value, where, str(key)) for key, value in made.items()}
    if isinstance(made, list) and made and all(isinstance(turn, Mapping) for turn in made):
        return {"messages": _plain(made, where, "messages")}
    raise DataError(
        f"{where}: formatting_func returned a {type(made).__name__}; it must return a text, a list of messages, or a "
        "dictionary of columns, for one row."
    )
