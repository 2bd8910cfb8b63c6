"""Runs a function in several processes that train together: forks of this one, which have imported everything."""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lamina.distributed.group import Group
from lamina.distributed.member import Silenced, taking_part
from lamina.distributed.world import World


class OneOf(World):
    """A process among several that talks to nobody."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        value: What the function gave.
        error: Name of the exception's class; empty without one, `killed` where a signal ended the process.
        message: What it says.
        trace: Its traceback.
    """

    value: Any = None
    error: str = ""
    message: str = ""
    trace: str = ""


def run_ranks(size: int, work: Callable[[Group], Any], timeout: float = 60.0) -> list[Outcome]:
    """Runs `work` in `size` processes.

    Args:
        size: Number of processes.
        work: Gets the process's group.
        timeout: Seconds that a process waits for another.
    """
    with _store() as port:
        children = [_fork(port, rank, size, work, timeout) for rank in range(size)]
        outcomes = []
        for pid, reader in children:
            with os.fdopen(reader, "rb") as file:
                content = file.read()
            os.waitpid(pid, 0)
            outcomes.append(pickle.loads(content) if content else Outcome(error="killed"))
    return outcomes


@contextlib.contextmanager
def _store() -> Iterator[int]:
    """Yields the port of a store in a process of its own.

    Its thread looks up the names of those who connect; a fork of the process meanwhile could look up none ever after.
    """
    (told, telling), (ended, ending) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ending)
        store = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False, multi_tenant=True)
        os.write(telling, f"{store.port}\n".encode())
        os.read(ended, 1)
        os._exit(0)
    os.close(telling)
    os.close(ended)
    try:
        with os.fdopen(told) as file:
            yield int(file.readline())
    finally:
        os.close(ending)
        os.waitpid(pid, 0)


def values_of(outcomes: list[Outcome]) -> list[Any]:
    """What the processes gave, all of which must have ended well."""
    for rank, outcome in enumerate(outcomes):
        assert not outcome.error, f"rank {rank}: {outcome.error}: {outcome.message}\n{outcome.trace}"
    return [outcome.value for outcome in outcomes]


def _fork(port: int, rank: int, size: int, work: Callable[[Group], Any], timeout: float) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    os.environ["LOCAL_RANK"] = str(rank)  # as launchers do
    torch.set_num_threads(1)  # the pool of threads does not survive a fork, and several at once may not make a new one
    try:
        outcome = _outcome(port, rank, size, work, timeout)
    except BaseException as error:
        outcome = Outcome(error=type(error).__name__, message=str(error), trace=traceback.format_exc())
    with os.fdopen(writer, "wb") as file:
        file.write(pickle.dumps(outcome))
    os._exit(0)


def _outcome(port: int, rank: int, size: int, work: Callable[[Group], Any], timeout: float) -> Outcome:
    patience = datetime.timedelta(seconds=30)
    store = dist.TCPStore("localhost", port, None, False, patience, wait_for_workers=False)
    group = Group(store, rank, size, size, local_rank=rank)
    group.timeout = timeout
    try:
        with taking_part(group):
            return Outcome(work(group))
    except BaseException as error:
        if not isinstance(error, Silenced):
            group.tell()
            time.sleep(0.1)
        return Outcome(error=type(error).__name__, message=str(error), trace=traceback.format_exc())
