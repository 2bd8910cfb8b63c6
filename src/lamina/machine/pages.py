"""Memory pages of weight files, which count as this process's own for as long as they are mapped and were read."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

# <linux/mman.h>; the second since Linux 5.4.
_MADV_WILLNEED = 3
_MADV_PAGEOUT = 21


def mapped_spans(files: Iterable[Path]) -> list[tuple[int, int]]:
    """Addresses, start and end, at which this process has the files mapped; none on systems other than Linux."""
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
    """Takes out of memory what of these files is mapped; reading it again brings it back, so nothing can be lost."""
    for start, end in mapped_spans(files):
        page_out(start, end)


def page_out(start: int, end: int) -> None:
    """Takes the pages between two addresses out of memory, on Linux; an older kernel refuses, and then they stay."""
    _advise(start, end, _MADV_PAGEOUT)


def page_in(start: int, end: int) -> None:
    """Has the pages between two addresses read while this goes on, on Linux."""
    _advise(start, end, _MADV_WILLNEED)


def _advise(start: int, end: int, advice: int) -> None:
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(advice))
