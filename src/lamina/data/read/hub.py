"""Reads a data set on the Hugging Face hub, streamed by `datasets`, which caches what it downloads."""

from __future__ import annotations

from collections.abc import Iterator

from lamina.data.read.columns import classes_of, with_classes, without_gaps
from lamina.data.read.find import DataFile
from lamina.data.read.rows import Fault, RawRow
from lamina.errors import DataError


def read(file: DataFile) -> Iterator[RawRow | Fault]:
    """Yields the rows of one split.

    Raises:
        DataError: The data set cannot be reached, or has no such split.
    """
    # The import takes a second, and only this kind needs it.
    import datasets
    from datasets.exceptions import DatasetsError

    number, failures = 0, (OSError, ValueError, RuntimeError, DatasetsError)
    try:
        rows = datasets.load_dataset(file.hub_id, file.hub_config or None, split=file.split, streaming=True)
    except failures as error:
        raise DataError(
            f"{file.hub_id}: is not a local file, and could not be loaded from the hub as split {file.split!r}: "
            f"{_reason(error)}. Fix: check the path or the id (user/name, user/name:split or "
            "user/name/configuration:split), or download the data and give the path of its files."
        ) from None
    classes = classes_of(getattr(rows, "features", None))
    try:
        for row in rows:
            number += 1
            yield RawRow(number, 0, with_classes(without_gaps(dict(row)), classes))
    except failures as error:
        yield Fault("unreadable_rest", number + 1, 0, f"cannot be loaded from the hub: {_reason(error)}")


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
