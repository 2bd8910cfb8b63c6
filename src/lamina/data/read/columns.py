"""What parquet and arrow share: rows from batches of columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from lamina.data.read.rows import Fault, RawRow
from lamina.data.read.stream import remarks_on


def rows_of_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[RawRow | Fault]:
    """Rows in order; a batch that cannot be read ends them with a fault."""
    number = 0
    try:
        for batch in batches:
            for value in batch.to_pylist():
                number += 1
                yield RawRow(number, 0, value, tuple(_remarks(value)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        yield Fault("unreadable_rest", number + 1, 0, f"cannot be read: {error}")


def _remarks(value: dict[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    for cell in value.values():
        if isinstance(cell, str):
            found.update(dict.fromkeys(remarks_on(cell)))
        elif isinstance(cell, float) and not math.isfinite(cell):
            found["not_a_number"] = None
    return list(found)
