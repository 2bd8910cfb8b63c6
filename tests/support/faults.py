"""Faults that are planted in one process of a run: which one, where and when are drawn from a seed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lamina.distributed.group import Group
from lamina.losses.base import LossSum
from lamina.losses.cross_entropy import CrossEntropy
from lamina.training import checkpoint, record

# How often each kind is drawn.
KINDS = {
    "SIGKILL": 6,
    "exception": 4,
    "SIGTERM": 4,
    "SIGSTOP": 2,
    "SIGSTOP, then SIGCONT": 2,
    "full disk": 3,
    "gradient that is not finite": 2,
    "other base": 1,
    "other data": 1,
    "other setting": 1,
    "other version": 1,
    "the command is killed": 1,
}
# Those that differ from the start on, and those that may come at any time.
DIFFERENT = ("other base", "other data", "other setting", "other version")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGSTOP", "SIGSTOP, then SIGCONT")

# What an exception says.
SAID = "the device has failed"
# Losses that each process computes before the first step, to measure the speed.
MEASURED = 1
# Seconds within which a signal comes amid an exchange.
_AMID = 0.03


@dataclass(frozen=True)
class Fault:
    """A fault, as it was drawn.

    Attributes:
        kind: One of `KINDS`; empty for none.
        size: Number of processes.
        rank: Of which process.
        moment: `start`, `exit`, `before`, `amid` or `after` an exchange, `loss` (while one is computed) or `delay`.
        number: Of the exchange or loss, from 1.
        seconds: Of the delay, or until a suspended process goes on.
        max_restarts: How often the command may start all processes again.
    """

    kind: str = ""
    size: int = 2
    rank: int = 0
    moment: str = "start"
    number: int = 1
    seconds: float = 0.0
    max_restarts: int = 0


def draw(seed: int, exchanges: int, steps: int, seconds: float) -> Fault:
    """Draws a fault.

    Args:
        seed: Of all that is random.
        exchanges: How many there are in an unbroken run.
        steps: Of a run.
        seconds: What an unbroken run takes.
    """
    rng = random.Random(seed)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    size = rng.choice((2, 3))
    rank = 0 if kind == "full disk" else rng.randrange(size)
    moments = ["before", "after", "loss"]
    if kind in SIGNALS:
        moments += ["start", "exit", "amid", "amid", "delay", "delay"]
    moment = {"full disk": "before", "gradient that is not finite": "loss", "the command is killed": "delay"}.get(
        kind, "start" if kind in DIFFERENT else rng.choice(moments)
    )
    most = MEASURED + steps if moment == "loss" else exchanges
    number = rng.randint(MEASURED + 1 if kind == "gradient that is not finite" else 1, most)
    after = rng.uniform(0.2, 4.0) if kind == "SIGSTOP, then SIGCONT" and moment != "delay" else rng.uniform(0, seconds)
    again = int(kind in ("SIGKILL", "exception") and rng.random() < 0.25)
    return Fault(kind, size, rank, moment, number, after, again)


class Planted:
    """The fault in this process, if it is the one.

    Args:
        fault: What was drawn.
        rank: Which process this is.
        log: File that what happens is written to.
    """

    def __init__(self, fault: Fault, rank: int, log: Path) -> None:
        self.fault, self.rank, self._log = fault, rank, log
        self.here = rank == fault.rank
        self._done = False
        self._bad = False
        self.note("begun")
        if self.here and fault.kind == "other version":
            record.__version__ = "0.0.0"
        if self.here and fault.kind == "full disk":
            self._fill_later()
        self._watch_exchanges()
        self._watch_losses()

    def note(self, what: str, where: str = "") -> None:
        """Writes a line with the time, which is the same clock for all processes, in s."""
        line = {"time": time.monotonic(), "pid": os.getpid(), "rank": self.rank, "what": what, "where": where}
        descriptor = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{json.dumps(line)}\n".encode())
        os.close(descriptor)

    def at(self, moment: str, number: int = 1, where: str = "") -> None:
        """Lets the fault happen if it is the moment for it."""
        fault = self.fault
        if not self.here or self._done or (fault.moment, fault.number) != (moment, number):
            return
        if fault.kind in DIFFERENT:
            self.note("fault", "from the start on")
        elif moment == "amid":
            self._later(random.uniform(0.0, _AMID), where)
        else:
            self._happen(where)

    def start(self) -> None:
        """Lets a fault happen that comes at the start, or after some time."""
        if self.here and self.fault.moment == "delay" and self.fault.kind in SIGNALS:
            self._later(self.fault.seconds, f"after {self.fault.seconds:.2f} s")
        self.at("start", self.fault.number, "the start")

    def exit(self) -> None:
        """Lets a fault happen that comes when the command is done."""
        self.at("exit", self.fault.number, "the exit")

    def _later(self, seconds: float, where: str) -> None:
        timer = threading.Timer(seconds, self._happen, (where,))
        timer.daemon = True
        timer.start()

    def _happen(self, where: str) -> None:
        kind = self.fault.kind
        self._done = True
        if kind in ("full disk", "gradient that is not finite"):
            self._bad = True
            return
        self.note("fault", where)
        if kind in SIGNALS:
            os.kill(os.getpid(), getattr(signal, kind.partition(",")[0]))
        elif kind == "exception":
            raise RuntimeError(SAID)

    def _watch_exchanges(self) -> None:
        real, count = Group.exchanging, [0]

        @contextlib.contextmanager
        def exchanging(group: Group, what: str) -> Iterator[dist.ProcessGroup]:
            count[0] += 1
            number = count[0]
            if not self.fault.kind:
                self.note("exchange", what)
            self.at("before", number, f"before {what!r}")
            self.at("amid", number, f"amid {what!r}")
            with real(group, what) as found:
                yield found
            self.at("after", number, f"after {what!r}")

        Group.exchanging = exchanging  # type: ignore[method-assign]

    def _watch_losses(self) -> None:
        real, count = CrossEntropy.compute, [0]

        def compute(loss: CrossEntropy, *args: Any) -> LossSum:
            if torch.is_grad_enabled():
                count[0] += 1
                self.at("loss", count[0], f"loss {count[0]}")
            found = real(loss, *args)
            if self._bad and self.fault.kind == "gradient that is not finite":
                self._bad = False
                self.note("fault", f"loss {count[0]}")
                return LossSum(found.total * float("inf"))
            return found

        CrossEntropy.compute = compute  # type: ignore[method-assign]

    def _fill_later(self) -> None:
        """From the moment on, nothing can be written any more."""

        def or_full(real: Callable[..., Any]) -> Callable[..., Any]:
            def write(*args: Any, **more: Any) -> Any:
                if not self._bad:
                    return real(*args, **more)
                self.note("fault", f"{real.__name__} after {self.fault.number} exchanges")
                raise OSError(errno.ENOSPC, "No space left on device")

            return write

        os.fsync = or_full(os.fsync)
        checkpoint.save_file = or_full(checkpoint.save_file)  # type: ignore[attr-defined]
