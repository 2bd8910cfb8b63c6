"""A command as a process: the signals that end it in good order, and streams that nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn


def open_standard_streams() -> None:
    """Opens those of stdin, stdout and stderr that were closed on us (`2>&-`), as empty ones.

    A file that is opened later would get the number of a closed one, and whatever a library prints.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115


def listen_for_signals() -> None:
    """Lets a plain `kill` and a hang-up end a command as Ctrl-C does, so that what is half-written is removed.

    A hang-up that is ignored, which is how `nohup` asks for it, stays so.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hang_up = getattr(signal, "SIGHUP", None)  # which Windows does not have
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        signal.signal(hang_up, signal.default_int_handler)


def drop_closed_streams() -> None:
    """Leads what is left for a closed pipe, or for a terminal that has gone, to nowhere.

    Else Python tries to write it once more when the process ends, and makes that the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # a stream that has no descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave(code: int) -> NoReturn:
    """Ends the process."""
    drop_closed_streams()
    sys.exit(code)
