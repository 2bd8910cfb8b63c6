"""Turns of a conversation as plain data, as rows of files and callers give them."""

from __future__ import annotations

from typing import Any

from lamina.chat.message import Message
from lamina.errors import DataError


def turn_of(value: Any) -> Message:
    """Reads a turn: a `Message`, or an object with `role` and `content`.

    Raises:
        DataError: It is neither, or has more fields.
    """
    if isinstance(value, Message):
        return value
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("role", "content")):
        raise DataError(f"a message is {value!r}. Fix: give each a role and a content.")
    unknown = sorted(map(str, set(value) - {"role", "content"}))
    if unknown:
        raise DataError(f"a message has {', '.join(unknown)}, which is not read. Fix: give role and content alone.")
    return Message(value["role"], value["content"])
