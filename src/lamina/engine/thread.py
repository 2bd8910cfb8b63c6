"""The engine's own thread, which computes steps while there is work, and what a request on its way is told through."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any


class Ticket:
    """A request on its way."""

    def __init__(self, end: Callable[[], None]) -> None:
        """
        Args:
            end: Tells the engine's thread to end it.
        """
        self._end = end

    def cancel(self) -> None:
        """Ends it without another piece; nothing if it is over."""
        self._end()


def work(engine: weakref.ref[Any], wake: threading.Event) -> None:
    """Runs an `Engine` until it is closed or gone.

    It holds no reference while it waits, so that an engine nobody uses ends.
    """
    while True:
        wake.wait(5.0)
        wake.clear()
        while True:
            own = engine()
            if own is None:
                return
            more = own.work_once()
            over = own.is_over
            del own
            if over:
                return
            if not more:
                break
