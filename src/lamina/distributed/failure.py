"""What one process tells the others of the error that ends it, so that all of them end by one message."""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict, dataclass, field
from typing import Any

from lamina.errors import Interrupted, LaminaError

# What a user does about a lost process.
AGAIN = "Fix: start the same command again; training goes on with --resume."


@dataclass(frozen=True)
class Failure:
    """An error in one process.

    Attributes:
        rank: The process.
        host: Its machine.
        type: Class of the error.
        message: What it says.
        exit_code: Exit code of a command that ends with it.
        details: The error as plain data, for `--json`.
    """

    rank: int
    host: str
    type: str
    message: str
    exit_code: int = 1
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException, rank: int, host: str) -> Failure:
        """Describes an error of this process."""
        if isinstance(error, PeerError):
            return error.failure
        known = isinstance(error, LaminaError)
        kind = type(error).__name__
        said = str(error) if known else f"{kind}: {' '.join(str(error).split())[:400]}"
        details = error.details() if isinstance(error, LaminaError) else {"type": kind, "message": said}
        return cls(rank, host, kind, said, error.exit_code if isinstance(error, LaminaError) else 1, details)

    def as_json(self) -> str:
        """Returns it as text; details that JSON has no form for are left out."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Failure:
        """Reads what `as_json` wrote."""
        return cls(**json.loads(text))


class PeerError(LaminaError):
    """Training ended because of an error in one of its processes, which the message names.

    Attributes:
        failure: The error.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        self.exit_code = failure.exit_code
        super().__init__(f"rank {failure.rank} ({failure.host}): {failure.message}")

    def details(self) -> dict[str, object]:
        failure = self.failure
        return {**failure.details, "message": str(self), "rank": failure.rank, "host": failure.host}


class LostRankError(Interrupted):
    """A process of the run ended without a word, or is late beyond the time-out. The run can be resumed.

    Attributes:
        ranks: The processes that are missing.
    """

    def __init__(self, message: str, ranks: list[int]) -> None:
        self.ranks = ranks
        super().__init__(message, ranks=ranks)


def is_interruption(error: BaseException) -> bool:
    """Returns whether a signal has ended this process or another, and nobody knows of one that is lost."""
    kind = error.failure.type if isinstance(error, PeerError) else type(error).__name__
    return kind in (Interrupted.__name__, KeyboardInterrupt.__name__)


def release_frames(error: BaseException, until: BaseException | None) -> None:
    """Clears what is held by the frames that an error passed through, and those of the errors that led to it.

    Args:
        error: The error.
        until: An error that was being handled before; its frames are others', and so are those of what led to it.
    """
    seen, left = {id(until)}, [error]
    while left:
        each = left.pop()
        if id(each) not in seen:
            seen.add(id(each))  # causes may form a circle
            traceback.clear_frames(each.__traceback__)
            left += [led for led in (each.__cause__, each.__context__) if led is not None]
