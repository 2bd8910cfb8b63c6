"""Lets connections end whose other side is silent, as after a cut cable: TCP would wait a quarter of an hour."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

# Seconds without an answer after which a connection breaks.
SECONDS = 30.0
# Interval at which new connections are looked for.
_LOOK = 2.0


def end_silent_connections() -> None:
    """Lets each TCP connection that this process now has break if what was sent is not acknowledged for `SECONDS`."""
    if sys.platform != "linux":
        return
    for each in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # it was closed meanwhile, or is no socket
            _set_time_out(os.dup(int(each.name)))


def _set_time_out(descriptor: int) -> None:
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise
    with found:
        if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * SECONDS))


@contextlib.contextmanager
def no_silent_connections() -> Iterator[None]:
    """Does the same for all connections that are made in the block."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK):
            end_silent_connections()

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()
