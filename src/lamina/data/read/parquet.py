"""Reads `.parquet`, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from lamina.data.read.columns import rows_of_batches
from lamina.data.read.find import DataFile
from lamina.data.read.rows import Fault, RawRow
from lamina.errors import DataError

_BATCH_ROWS = 1024


def read(file: DataFile) -> Iterator[RawRow | Fault]:
    """Yields the rows of the file, in order.

    Raises:
        DataError: The file is not a Parquet file, or has two columns of one name.
    """
    try:
        parquet = pq.ParquetFile(str(file.path), memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.name}: is not a complete Parquet file ({error}). Fix: write it again.") from None
    return rows_of_batches(parquet.iter_batches(batch_size=_BATCH_ROWS), parquet.schema_arrow, file.name)
