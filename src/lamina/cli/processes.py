"""Commands in several processes: starts them, and lets them end as one."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lamina.cli.output import notify
from lamina.distributed.failure import LostRankError
from lamina.distributed.member import Silenced, member
from lamina.distributed.ranks import restarts_left
from lamina.distributed.words import speaks
from lamina.errors import ConfigError, Interrupted, LaminaError, Problem

if TYPE_CHECKING:
    from lamina.distributed.group import Group

Nproc = Annotated[str | None, typer.Option(help="Number of processes on this machine; auto: one for each GPU.")]

# Options with a value that are for the process that starts the others.
_LAUNCHING = ("--nproc", "--nnodes", "--rdzv-endpoint", "--max-restarts")


def start_processes(count: int, nnodes: int = 1, endpoint: str | None = None, max_restarts: int = 0) -> NoReturn:
    """Runs this process's own command in several processes, and ends with their exit code.

    Args:
        count: Processes on this machine.
        nnodes: Machines.
        endpoint: HOST:PORT where the processes of several machines meet.
        max_restarts: How often to start all processes again if one fails.

    Raises:
        ConfigError: The command reads standard input, which only one process could.
    """
    from lamina.distributed.launch import launch

    arguments = without_launching(sys.argv[1:])
    if "-" in arguments:
        fix = "write the configuration to a file, which every process can read"
        raise ConfigError(Problem("CONFIG", "cannot be standard input for processes that are started", fix))
    raise typer.Exit(launch(arguments, count, nnodes, endpoint, max_restarts, notify=notify))


def without_launching(arguments: Sequence[str]) -> list[str]:
    """Returns a command line without the options that start several processes.

    >>> without_launching(["train", "a.yaml", "--nproc", "2", "--quiet", "--max-restarts=3", "seed=1"])
    ['train', 'a.yaml', '--quiet', 'seed=1']
    """
    kept: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument in _LAUNCHING:
            del left[:1]
        elif argument.partition("=")[0] not in _LAUNCHING:
            kept.append(argument)
    return kept


@contextlib.contextmanager
def as_one() -> Iterator[Group | None]:
    """Lets the block end as one command in all processes that a launcher has started it in.

    Yields:
        The processes; None for one by itself.
    """
    try:
        with member() as group:
            yield group
    except Silenced as error:
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:  # before the processes have met
        if speaks():
            raise
        raise typer.Exit(1) from None
    except LaminaError as error:
        final = isinstance(error, ConfigError | Interrupted) and not isinstance(error, LostRankError)
        if final or not restarts_left():
            raise
        notify(f"{error} Starting again ...")
        raise typer.Exit(error.exit_code) from None
