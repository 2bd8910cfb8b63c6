"""What a process leaves to the command that has started it.

The last words of one that was interrupted: a signal may come because another process was killed, which only the command
knows, and then tells of instead. And that all is done: whoever is killed afterwards is not missed.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamina.distributed.failure import AGAIN
from lamina.distributed.ranks import is_first_rank, rank, restarts
from lamina.errors import Interrupted

VARIABLE = "LAMINA_LAST_WORDS"
"""Environment variable that names the command's process and the folder for it: `4711:/tmp/...`."""


@dataclass(frozen=True)
class Words:
    """What a process has left to say.

    Attributes:
        rank: The process.
        code: Its exit code.
        details: Of the error that ended it.
    """

    rank: int
    code: int
    details: dict[str, Any]

    def error(self, named: bool) -> BaseException:
        """Returns the error to raise.

        Args:
            named: Whether to name the process, since the signal came to it alone.
        """
        details = dict(self.details)
        message = details.pop("message")
        if self.code != Interrupted.exit_code:
            if not named:
                return KeyboardInterrupt()
            details.setdefault("rank", self.rank)
            message = f"rank {details['rank']} was interrupted before training. {AGAIN}"
        if named and not {"rank", "signal"} & details.keys():  # then the message has it already
            message = f"rank {self.rank}: {message}"
        return Interrupted(message, **details)


def place(folder: str) -> str:
    """Returns the value of the variable for processes that this one starts."""
    return f"{os.getpid()}:{folder}"


def _folder() -> Path | None:
    """The folder, if the command has started this process itself; not so for what one of its processes starts."""
    command, _, folder = os.environ.get(VARIABLE, "").partition(":")
    return Path(folder) if command == str(os.getppid()) else None


def speaks() -> bool:
    """Returns whether it is this process that says that all were interrupted before they met, or its words are left."""
    return is_first_rank() or _folder() is not None


def leave_words(code: int, details: Mapping[str, object]) -> bool:
    """Leaves what a process would say, unless another has already.

    Args:
        code: The process's exit code.
        details: Of the error.

    Returns:
        Whether there is somebody to say it.
    """
    folder = _folder()
    if folder is None:
        return False
    try:
        with (folder / f"words-{restarts()}.json").open("x", encoding="utf-8") as file:
            json.dump({"rank": rank(), "code": code, "details": dict(details)}, file, default=str)
    except FileExistsError:
        return True
    except OSError:  # the disk is full, or the command is gone
        return False
    return True


def leave_done() -> None:
    """Leaves that all is done and said, if this is the process that says it."""
    if is_first_rank():
        _touch("done")


def was_said() -> bool:
    """Returns whether all was done and said before these processes were started again."""
    folder = _folder()
    return folder is not None and any(was_done_in(folder, number) for number in range(restarts()))


def was_done_in(folder: Path, restart: int) -> bool:
    """Returns whether all was done and said when the processes had been started again so often."""
    return (folder / f"done-{restart}").exists()


def leave_told() -> None:
    """Leaves that a process has told why all of them end, so that nobody needs another's words."""
    _touch("told")


def _touch(what: str) -> None:
    folder = _folder()
    if folder is not None:
        with contextlib.suppress(OSError):  # the disk is full, or the command is gone
            (folder / f"{what}-{restarts()}").touch()


def words_in(folder: Path, restart: int | None = None) -> Words | None:
    """Returns what a process has left there to say; None if none has, or another has told why all of them end.

    Args:
        folder: For the words.
        restart: How often the processes had been started again by then; by default, whenever they left any last.
    """
    try:
        numbers = [int(path.stem.removeprefix("words-")) for path in folder.glob("words-*.json")]
        number = max(numbers, default=0) if restart is None else restart
        if (folder / f"told-{number}").exists():
            return None
        return Words(**json.loads((folder / f"words-{number}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # there are none, or the process was killed amid them
        return None
