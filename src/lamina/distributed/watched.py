"""Waits for a call that blocks outside of Python, as connecting does, and meanwhile hears of signals and of the others.

Python runs a signal's handler in the main thread between two of its instructions, so one that waits in C++ hears of
none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

# Seconds between two looks.
_POLL = 0.1


def watched(work: Callable[[], T], look: Callable[[], object]) -> T:
    """Runs `work` in a thread of its own, on this thread's GPU, and calls `look` from time to time until it has ended.

    Args:
        work: Blocks. Where `look` raises an error, nobody waits for it any longer.
        look: Raises an error where `work` cannot succeed any more.
    """
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if gpu is not None:
                torch.cuda.set_device(gpu)
            found.append(work())
        except BaseException as error:  # of any kind: it is raised below
            errors.append(error)

    working = threading.Thread(target=run, daemon=True)
    working.start()
    while working.is_alive():
        working.join(_POLL)
        if working.is_alive():
            look()
    if errors:
        raise errors[0]
    return found[0]
