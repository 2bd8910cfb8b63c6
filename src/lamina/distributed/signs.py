"""Signs of life: for how long another process has given none."""

from __future__ import annotations

import time
from collections.abc import Callable


class Signs:
    """For how long other processes have given no sign of life.

    Args:
        read: Reads a value of the store that all processes share.
    """

    def __init__(self, read: Callable[[str], str]) -> None:
        self._read = read
        self._last: dict[int, tuple[str, float]] = {}

    def silence(self, rank: int) -> float:
        """Returns the seconds since a process's last sign, as far as this method was called since then."""
        sign, now = self._read(f"beat/{rank}"), time.monotonic()
        last, since = self._last.get(rank, ("", now))
        self._last[rank] = (sign, since if sign == last else now)
        return now - self._last[rank][1]
