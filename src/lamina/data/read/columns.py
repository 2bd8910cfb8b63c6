"""What Parquet and Arrow share: rows from batches of columns."""

from __future__ import annotations

import json
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

import pyarrow as pa

from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import remarks_on
from lamina.data.read.times import TIMES, time_text
from lamina.errors import DataError

# Column -> the names of its classes, by their numbers.
Classes = Mapping[str, Sequence[str]]


def rows_of_batches(batches: Iterator[pa.RecordBatch], schema: pa.Schema, name: str) -> Iterator[RawRow | Fault]:
    """Yields rows in order; a batch that cannot be read ends them with a fault.

    Args:
        batches: The rows.
        schema: Their columns, with what `datasets` wrote about them.
        name: The file, for errors.

    Raises:
        DataError: Two columns have the same name.
    """
    check_names(schema.names, name)
    classes, number = classes_in(schema), 0
    try:
        for batch in batches:
            decoders = {column.name: decoder for column in batch.schema if (decoder := _json_decoder(column.type))}
            for value in batch.to_pylist():
                number += 1
                row = without_gaps(value)
                try:
                    row |= {column: decode(row[column]) for column, decode in decoders.items()}
                except ValueError as error:
                    yield Fault("not_json", number, 0, f"a JSON column contains something else: {error}")
                    continue
                yield RawRow(number, 0, with_classes(row, classes), tuple(_remarks(row)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        yield Fault("unreadable_rest", number + 1, 0, f"cannot be read: {error}")


def check_names(names: Iterable[str], name: str) -> None:
    """Checks that columns have different names, since a row can only have one value under a name.

    Args:
        names: The names of the columns.
        name: The file or the data, for errors.

    Raises:
        DataError: Two have the same name.
    """
    twice = next((column for column, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{name}: has several columns with the name {twice!r}. Fix: rename or drop all but one.")


def classes_in(schema: pa.Schema) -> Classes:
    """Returns the names of classes that `datasets` wrote into a table's metadata for its columns of class numbers."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {str(column): names for column, about in info.items() if (names := _names_in(about))}
    except (KeyError, ValueError, TypeError, AttributeError):  # not there, or of another version
        return {}


def _names_in(about: Any) -> list[str]:
    is_class = isinstance(about, dict) and about.get("_type") == "ClassLabel"
    return list(map(str, about.get("names") or ())) if is_class else []


def classes_of(features: Any) -> Classes:
    """Returns the names of the classes of a data set's columns, by its `features`; empty if they are not known."""
    named = (features or {}).items()
    return {str(column): list(kind.names) for column, kind in named if type(kind).__name__ == "ClassLabel"}


def with_classes(row: dict[str, Any], classes: Classes) -> dict[str, Any]:
    """Returns the row with names in place of the numbers of classes; -1, which stands for no class, becomes null."""
    for column, names in classes.items():
        if column == "label" and "completion" in row:  # says whether an answer is desirable, by 1 or 0
            continue
        value = row.get(column)
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):  # a name already, or a gap
            continue
        number = operator.index(value)
        if number == -1:
            row = {**row, column: None}
        elif 0 <= number < len(names):
            row = {**row, column: names[number]}
    return row


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
