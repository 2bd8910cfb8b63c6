"""What the launcher's environment says of this process, without importing torch."""

from __future__ import annotations

import os


def is_one_of_several() -> bool:
    """Returns whether a launcher has started this process as one of several."""
    return world_size() > 1


def is_first_rank() -> bool:
    """Returns whether this is the first of the processes that a launcher has started, or one by itself."""
    return rank() == 0


def rank() -> int:
    """Returns which of the processes that a launcher has started this is; 0 without a launcher."""
    return _number("RANK", 0)


def world_size() -> int:
    """Returns how many processes a launcher has started this one with; 1 without a launcher."""
    launched = "RANK" in os.environ and "MASTER_ADDR" in os.environ
    return _number("WORLD_SIZE", 1) if launched else 1


def restarts() -> int:
    """Returns how often the launcher has restarted the processes; a restarted run goes on from its checkpoint."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0)


def restarts_left() -> int:
    """Returns how often the launcher will restart the processes if one fails."""
    return max(0, _number("TORCHELASTIC_MAX_RESTARTS", 0) - restarts())


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
