"""What Parquet and Arrow share: rows from batches of columns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import remarks_on
from lamina.data.read.times import TIMES, time_text


def rows_of_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[RawRow | Fault]:
    """Yields rows in order; a batch that cannot be read ends them with a fault."""
    number = 0
    try:
        for batch in batches:
            decoders = {column.name: decoder for column in batch.schema if (decoder := _json_decoder(column.type))}
            for value in batch.to_pylist():
                number += 1
                row = without_gaps(value)
                try:
                    row |= {name: decode(row[name]) for name, decode in decoders.items()}
                except ValueError as error:
                    yield Fault("not_json", number, 0, f"a JSON column contains something else: {error}")
                    continue
                yield RawRow(number, 0, row, tuple(_remarks(row)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        yield Fault("unreadable_rest", number + 1, 0, f"cannot be read: {error}")


def without_gaps(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the row without the nulls that a table adds to its tools and calls, and with its dates as text.

    All structs in a column have the same fields. A call to one function therefore also has the arguments of all others,
    as nulls, and the model would learn them.
    """
    return {key: _compact(cell, key in _CALLS) for key, cell in row.items()}


def _json_decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """Returns a function that parses JSON text in a column at any depth, where `datasets` stores values that do not fit
    a table.

    Returns None for columns without such text.
    """
    if isinstance(kind, pa.JsonType):
        return lambda text: None if text is None else json.loads(text)
    if isinstance(kind, pa.BaseExtensionType):
        return _json_decoder(kind.storage_type)
    if isinstance(kind, _LISTS):
        inner = _json_decoder(kind.value_type)
        return inner and (lambda items: None if items is None else [inner(item) for item in items])
    if isinstance(kind, pa.StructType):
        parts = {field.name: decoder for field in kind if (decoder := _json_decoder(field.type))}
        # A null field may have been removed already.
        decode = lambda value: value | {key: parts[key](value[key]) for key in parts.keys() & value.keys()}  # noqa: E731
        return (lambda value: None if value is None else decode(value)) if parts else None
    return None


_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType, pa.ListViewType, pa.LargeListViewType)

# The columns and keys that contain tools and their arguments, in a row or in a turn.
_CALLS = frozenset(["tools", "functions", "tool_calls", "function_call"])


def _compact(value: Any, inside: bool) -> Any:
    if isinstance(value, list):
        return [_compact(item, inside) for item in value]
    if not isinstance(value, dict):
        is_time = isinstance(value, TIMES) and value == value  # pandas' NaT is a date, too
        return time_text(value) if is_time else value
    kept = {key: _compact(item, inside or key in _CALLS) for key, item in value.items()}
    return {key: item for key, item in kept.items() if item is not None} if inside else kept


def _remarks(value: dict[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    for cell in value.values():
        if isinstance(cell, str):
            found.update(dict.fromkeys(remarks_on(cell)))
        elif isinstance(cell, float) and not math.isfinite(cell):
            found["not_a_number"] = None
    return list(found)
