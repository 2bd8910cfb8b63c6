"""The engine's own thread, which computes steps while there is work, and what a request on its way is told through."""

from __future__ import annotations

import atexit
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


_exiting = threading.Event()
_wakes: weakref.WeakKeyDictionary[threading.Thread, threading.Event] = weakref.WeakKeyDictionary()


def start(engine: Any, wake: threading.Event) -> threading.Thread:
    """Starts the thread that runs an `Engine` until it is closed, or gone, or the process ends.

    Args:
        engine: Has `work_once`, `break_down` and `is_over`.
        wake: Set when there is something to do.
    """
    thread = threading.Thread(target=_work, args=(weakref.ref(engine), wake), daemon=True, name="lamina-engine")
    _wakes[thread] = wake
    thread.start()
    return thread


def _work(engine: weakref.ref[Any], wake: threading.Event) -> None:
    # It holds no reference while it waits, so that an engine nobody uses ends.
    while not _exiting.is_set():
        wake.wait(5.0)
        wake.clear()
        while not _exiting.is_set():
            own = engine()
            if own is None:
                return
            try:
                more = own.work_once()
            except BaseException as error:  # nobody would answer any more, and whoever waits must not wait forever
                own.break_down(error)
                raise
            over = own.is_over
            del own
            if over:
                return
            if not more:
                break


@atexit.register
def _end_all() -> None:
    """Waits for every thread to finish its step: Python stops daemon threads where they are, and in the middle of C++
    that aborts the process."""
    _exiting.set()
    for thread, wake in list(_wakes.items()):
        wake.set()
        thread.join(60)
