"""Membership in a group of processes for the time of a block: how each begins, and how all of them end together."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lamina.distributed.failure import Failure, LostRankError, PeerError
from lamina.distributed.ranks import is_one_of_several
from lamina.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from lamina.distributed.group import Group

CPP_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
"""Environment variable that torch reads as it is imported."""


class Silenced(Exception):
    """Ends a process whose error another one reports.

    Attributes:
        exit_code: Exit code of the command.
    """

    def __init__(self, failure: Failure) -> None:
        self.exit_code = failure.exit_code
        super().__init__(f"rank 0 reports the error: {failure.message}")


@contextlib.contextmanager
def member() -> Iterator[Group | None]:
    """Joins the group of processes that this one was started in, if any, for the block.

    An error in the block ends all processes. The first of them raises it, with the rank that it came from; the others
    raise `Silenced` as soon as the first has told the user. Where the first is gone, another takes its place.

    Yields:
        The group; None for a process by itself, which has not imported torch for it.
    """
    if not is_one_of_several():
        yield None
        return
    os.environ.setdefault(CPP_LOG_LEVEL, "FATAL")  # what breaks is told by name, without torch's own traces
    from lamina.distributed.join import join

    with taking_part(join()) as group:
        yield group


@contextlib.contextmanager
def taking_part(group: Group) -> Iterator[Group]:
    """Tells the others of an error in the block; see `member`."""
    try:
        yield group
    except BaseException as error:
        group.report(error)
        failure = Failure.of(error, group.rank, group.host)
        if not group.must_tell(error.ranks if isinstance(error, LostRankError) else ()):
            raise Silenced(failure) from error
        atexit.register(group.tell)
        raise _named(error, failure) from error
    else:
        group.leave()


def _named(error: BaseException, failure: Failure) -> BaseException:
    """The error with its rank, where one rank alone may have it."""
    unnamed = isinstance(error, ConfigError | Interrupted | PeerError)
    return PeerError(failure) if isinstance(error, Exception) and not unnamed else error
