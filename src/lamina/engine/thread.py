"""The engine's own thread: computes steps while there is work, and sleeps until there is more."""

from __future__ import annotations

import threading
import weakref
from typing import Any


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
