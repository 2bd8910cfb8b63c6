"""Python's search for reference cycles, while rows are read."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# New objects between two searches; a chunk of rows makes that many.
_OBJECTS = 50_000


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Lets the search for cycles come less often inside the block.

    By default it comes after every 700 new objects. Rows are made of tens of objects without cycles, and several
    thousand rows are alive at once, so searching them took a sixth of all that Python did.
    """
    before = gc.get_threshold()
    if 0 < before[0] < _OBJECTS:
        gc.set_threshold(_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
