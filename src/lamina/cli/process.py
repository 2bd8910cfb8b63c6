"""A command as a process: signals that end it cleanly, and output streams that are closed."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from lamina.distributed.words import leave_done


def open_standard_streams() -> None:
    """Opens any of stdin, stdout and stderr that are closed (`2>&-`), as empty streams.

    Otherwise, a file opened later would get the descriptor of a closed stream, and receive whatever a library prints.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def listen_for_signals() -> None:
    """Makes SIGTERM and SIGHUP end a command like Ctrl-C, so that half-written files are removed.

    An ignored SIGHUP, as set by `nohup`, stays ignored.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, signal.default_int_handler)


def drop_closed_streams() -> None:
    """Redirects output left for a closed pipe or a closed terminal to /dev/null.

    Otherwise, Python would try to write it again on exit, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave(code: int) -> NoReturn:
    """Ends the process. A signal amid its end, when all is said, only ends it sooner."""
    if code == 0:
        leave_done()
    drop_closed_streams()
    atexit.register(_end_on_signals, code)
    sys.exit(code)


def _end_on_signals(code: int) -> None:
    def end(number: int, frame: FrameType | None) -> NoReturn:
        os._exit(code)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # SIGHUP is not on Windows
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
