"""`chatlog`: one field `log` with one line per turn, such as `Q: hello` and `A: hi`."""

from collections.abc import Mapping
from typing import Any

from lamina.chat.message import Message
from lamina.data.example import Example

FIELDS = ("log",)
OPTIONAL_FIELDS: tuple[str, ...] = ()

_ROLES = {"Q": "user", "A": "assistant"}


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has a log."""
    return "log" in row


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses one turn per line."""
    turns = (line.partition(": ") for line in row["log"].splitlines())
    return Example(tuple(Message(_ROLES[role], text) for role, _, text in turns), number)
