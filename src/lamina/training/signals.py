"""SIGINT and SIGTERM ask training to stop at a safe point; a second one stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopRequest:
    """Whether a signal came.

    Attributes:
        signal: Its name, such as `SIGINT`; None while none came.
    """

    signal: str | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a request inside the block; the handlers are put back after it.

    Outside the main thread, where Python allows no handlers, the request never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    names = (signal.SIGINT, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        for name in names:
            signal.signal(name, before[name])

    for name in names:
        signal.signal(name, on_signal)
    try:
        yield request
    finally:
        for name in names:
            signal.signal(name, before[name])
