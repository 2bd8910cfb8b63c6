"""What the formats share: reading a field of a row as text or as turns, with an error that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import ROLES, Message


class RowError(ValueError):
    """A row does not have the shape of its format; the reader adds file and row."""


def text_field(row: Mapping[str, Any], name: str, required: bool = True) -> str:
    """A text field of the row; an absent or null optional one is empty."""
    value = row.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        found = "is missing" if name not in row else f"is {type(value).__name__}, not text"
        raise RowError(f"field {name!r} {found}")
    return value


def message_list(value: Any, name: str) -> list[Message]:
    """A list of `{role, content}` objects.

    An assistant turn without text (a bare tool call) becomes an empty message, which the reader drops by name.
    """
    if not isinstance(value, list):
        raise RowError(f"field {name!r} is {type(value).__name__}, not a list of messages")
    messages = []
    for position, item in enumerate(value, start=1):
        if not isinstance(item, dict) or "role" not in item:
            raise RowError(f"{name}[{position}] is not an object with 'role' and 'content'")
        role, content = item["role"], item.get("content")
        if role not in ROLES:
            raise RowError(f"{name}[{position}] has the role {role!r}; roles are {', '.join(ROLES)}")
        if content is None and role == "assistant":
            content = ""
        if not isinstance(content, str):
            raise RowError(f"{name}[{position}] has content of type {type(content).__name__}, not text")
        messages.append(Message(role, content))
    return messages
