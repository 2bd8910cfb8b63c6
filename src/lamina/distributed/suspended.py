"""Tells of processes that are suspended (SIGSTOP), for which the others would wait without a word, and lets those go on
that have been told to end: a suspended process does not hear of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# Interval in s at which processes are looked at. One that is suspended at two looks in a row is told of.
_LOOK = 1.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT) if sys.platform == "linux" else ()


@contextlib.contextmanager
def watch_for_suspended(notify: Callable[[str], object]) -> Iterator[None]:
    """Watches the processes that this thread starts in the block. Does nothing on systems other than Linux.

    A process in a debugger is not suspended in this sense: it is left alone, and nothing is said.

    Args:
        notify: Gets a message that names the rank and the process, and says how to let it go on.
    """
    if sys.platform != "linux":
        yield
        return
    ended, starter = threading.Event(), threading.get_native_id()
    looking = threading.Thread(target=_watch, args=(starter, notify, ended), daemon=True)
    looking.start()
    try:
        yield
    finally:
        ended.set()
        looking.join()


def _watch(starter: int, notify: Callable[[str], object], ended: threading.Event) -> None:
    looks: dict[int, int] = {}
    while not ended.wait(_LOOK):
        suspended = [pid for pid in _children(starter) if _facts(pid).get("State", "").startswith("T ")]
        looks = {pid: looks.get(pid, 0) + 1 for pid in suspended}
        for pid, count in looks.items():
            if _was_told_to_end(pid):
                with contextlib.suppress(OSError):  # it has been killed meanwhile
                    os.kill(pid, signal.SIGCONT)
            elif count == 2:
                notify(
                    f"warning: {rank_of(pid)} (process {pid}) is suspended (SIGSTOP). The others wait for it, up to "
                    f"distributed.timeout. Fix: kill -CONT {pid}"
                )


def rank_of(pid: int) -> str:
    """Returns what a process is called: `rank 1`, by its environment."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return f"rank {entry.removeprefix(b'RANK=').decode()}"
    return "a process"


def _children(starter: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/self/task/{starter}/children").read_text().split()]
    return []


def _facts(pid: int) -> dict[str, str]:
    """What the kernel says of a process, by name; empty if it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {}


def _was_told_to_end(pid: int) -> bool:
    pending = int(_facts(pid).get("ShdPnd", "0"), 16)
    return any(pending >> (number - 1) & 1 for number in _ENDING)
