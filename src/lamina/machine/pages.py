"""Memory pages of weight files. Once read, mapped pages count as this process's memory until they are unmapped."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

# From <linux/mman.h>; MADV_PAGEOUT exists since Linux 5.4.
_MADV_WILLNEED = 3
_MADV_PAGEOUT = 21


def mapped_spans(files: Iterable[Path]) -> list[tuple[int, int]]:
    """Returns the (start, end) addresses at which this process has mapped the files; empty except on Linux."""
    if not sys.platform.startswith("linux"):
        return []
    paths = {str(path.resolve()) for path in files}
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *path = line.split(maxsplit=5)
        if path and path[0] in paths:
            start, end = (int(address, 16) for address in span.split("-"))
            spans.append((start, end))
    return spans


def drop_file_pages(files: Iterable[Path]) -> None:
    """Drops the mapped pages of these files from memory. They are read from disk again when needed."""
    for start, end in mapped_spans(files):
        page_out(start, end)


def page_out(start: int, end: int) -> None:
    """Drops the pages between two addresses from memory, on Linux. Older kernels refuse, and the pages stay."""
    _advise(start, end, _MADV_PAGEOUT)


def page_in(start: int, end: int) -> None:
    """Starts reading the pages between two addresses in the background, on Linux."""
    _advise(start, end, _MADV_WILLNEED)


def _advise(start: int, end: int, advice: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(advice))
