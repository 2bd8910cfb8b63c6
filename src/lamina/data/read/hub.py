"""A data set of the Hugging Face hub, streamed by `datasets`, which keeps what it fetched in its own cache."""

from __future__ import annotations

from collections.abc import Iterator

from lamina.data.read.find import DataFile
from lamina.data.read.rows import Fault, RawRow
from lamina.errors import DataError


def read(file: DataFile) -> Iterator[RawRow | Fault]:
    """The rows of one split.

    Raises:
        DataError: It cannot be reached, or has no such split.
    """
    # Takes a second to import, and only this kind needs it.
    import datasets
    from datasets.exceptions import DatasetsError

    name = file.name.split(":", 1)[0]
    try:
        rows = datasets.load_dataset(name, split=file.split, streaming=True)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name}: is no file here, and cannot be had from the hub as split {file.split!r}: {reason}. "
            "Fix: check the path or the id, or download the data and name its files."
        ) from None
    return (RawRow(number, 0, dict(row)) for number, row in enumerate(rows, start=1))
