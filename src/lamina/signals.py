"""SIGINT, SIGTERM and SIGHUP ask training to stop at a safe point; a second one stops it at once.

A hang-up is the exception: terminal and shell both send one, so that it comes twice, and it only ever asks.
"""

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
        signal: Its name, such as `SIGINT`; `SIGPIPE` where nobody reads any more what is said; None while none came.
    """

    signal: str | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first of these signals into a request inside the block; the handlers are put back after it.

    A hang-up that is ignored (`nohup`) stays so. Outside the main thread, where Python allows no handlers, the request
    never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    names = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # which Windows does not have
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        names.append(hang_up)
    before = {name: signal.getsignal(name) for name in names}

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number).name
        for name in names:
            signal.signal(name, signal.SIG_IGN if name == hang_up else before[name])

    for name in names:
        signal.signal(name, on_signal)
    try:
        yield request
    finally:
        for name in names:
            signal.signal(name, before[name])
