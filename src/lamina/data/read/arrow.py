"""Reads `.arrow` and `.feather`: the IPC file or stream format, batch by batch from a memory-mapped file."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from lamina.data.read.columns import rows_of_batches
from lamina.data.read.find import DataFile
from lamina.data.read.rows import Fault, RawRow
from lamina.errors import DataError


def read(file: DataFile) -> Iterator[RawRow | Fault]:
    """Yields the rows of the file, in order.

    Raises:
        DataError: The file is not in an Arrow format, or has two columns of one name.
    """
    try:
        mapped = pa.memory_map(str(file.path))
        try:
            reader = pa.ipc.open_file(mapped)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            mapped.seek(0)
            reader = pa.ipc.open_stream(mapped)
            batches = iter(reader)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.name}: is not a complete Arrow file ({error}). Fix: write it again.") from None
    return rows_of_batches(batches, reader.schema, file.name)
