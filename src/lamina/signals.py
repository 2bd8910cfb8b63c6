"""Turns SIGINT, SIGTERM and SIGHUP into a request to stop at a safe point. A second signal stops the process at once.

SIGHUP is the exception: the terminal and the shell both send it, so it arrives twice, and it is only ever a request.
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
    """Whether a signal has arrived.

    Attributes:
        signal: Its name, such as `SIGINT`; `SIGPIPE` if nobody reads the output any more; None if none has arrived.
    """

    signal: str | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first of these signals into a request inside the block, and restores the handlers afterwards.

    An ignored SIGHUP (`nohup`) stays ignored. Outside the main thread, where Python does not allow handlers, a request
    never arrives.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    names = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
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


@contextlib.contextmanager
def handlers_restored() -> Iterator[None]:
    """Restores the handlers of these signals after the block, for a library that sets its own and leaves them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, signal.SIG_DFL if handler is None else handler)
