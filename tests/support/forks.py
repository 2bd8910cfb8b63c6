"""Runs `lamina train` as often as wanted without importing anything anew: commands and their processes are forks.

The process that forks has one thread and has computed nothing. A fork is the command, which itself has forked the
processes that it will start; torch's elastic agent in it gets these from `Waiting`, a `Popen` whose process is there
already. So all that watches and ends processes is the real thing.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any, ClassVar, NoReturn

from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from lamina.cli.app import main as run_command_line
from lamina.distributed import suspended

# What a process runs once it is a process of its own; it ends the interpreter.
Main = Callable[[], None]
# Runs as a process that the command has started.
Rank = Callable[[Main], None]


class Waiting(Popen[bytes]):
    """A process that was forked before, and waits for its command line and environment."""

    ready: ClassVar[list[tuple[int, int]]] = []
    ranks: ClassVar[dict[int, str]] = {}

    def _execute_child(self, args: Sequence[str], *more: Any) -> None:
        """Lets the next one begin."""
        environment = next(each for each in more if isinstance(each, dict))
        self.pid, writer = self.ready.pop(0)
        self.ranks[self.pid] = environment["RANK"]
        self._child_created = True
        with os.fdopen(writer, "w") as file:
            json.dump({"arguments": list(args), "environment": environment}, file)


class Become(BaseException):
    """Takes a fork to the bottom of its stack, where it runs `main` instead of what the process before it would.

    Attributes:
        main: Runs, and ends the interpreter.
    """

    def __init__(self, main: Main) -> None:
        super().__init__()
        self.main = main


def ended_at_once(run: Main) -> Main:
    """Returns what runs the same, and then leaves out the interpreter's own end, which takes as long as a small run.

    What is to be done at exit is done; only objects are not taken down.
    """

    def run_and_end() -> None:
        code: object = 0
        try:
            run()
        except SystemExit as error:
            code = error.code
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))

    return run_and_end


def become_command(
    arguments: Sequence[str], processes: int, out: int, err: int, folder: Path, rank: Rank, whole: bool
) -> NoReturn:
    """Makes this process, a fork, a command of lamina's.

    Args:
        arguments: Of the command line.
        processes: How many it may start.
        out: Descriptor that becomes standard output.
        err: The same for standard error.
        folder: Where each process writes its stacks when it gets SIGUSR2.
        rank: What a process that it starts runs.
        whole: Whether the interpreters end as they do, or see `ended_at_once`.

    Raises:
        Become: Always.
    """
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # Anew, since the old ones may have been files, which can be sought in.
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["lamina", *arguments]
    for _ in range(processes):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            for other in [writer, *(descriptor for _, descriptor in Waiting.ready)]:
                os.close(other)
            as_rank = partial(_as_rank, reader, folder, rank)
            raise Become(as_rank if whole else ended_at_once(as_rank))
        os.close(reader)
        Waiting.ready.append((pid, writer))
    _show_stacks_in(folder)
    subprocess_handler.Popen = Waiting  # type: ignore[misc]
    suspended.rank_of = lambda pid: f"rank {Waiting.ranks[pid]}"  # a fork's is not in /proc
    raise Become(run_command_line if whole else ended_at_once(run_command_line))


def _as_rank(reader: int, folder: Path, rank: Rank) -> None:
    with os.fdopen(reader) as file:
        text = file.read()
    if not text:  # it is not needed
        os._exit(0)
    order = json.loads(text)
    os.setsid()
    os.environ.clear()
    os.environ.update(order["environment"])
    assert order["arguments"][1:3] == ["-m", "lamina"]
    sys.argv = ["lamina", *order["arguments"][3:]]
    _show_stacks_in(folder)
    rank(run_command_line)


def _show_stacks_in(folder: Path) -> None:
    file = (folder / f"stacks-{os.getpid()}.txt").open("w")
    faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)
