"""`messages`: a conversation in the OpenAI chat shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Message
from lamina.data.formats._fields import message_list

FIELDS = ("messages",)
OPTIONAL_FIELDS: tuple[str, ...] = ()


def detect(row: Mapping[str, Any]) -> bool:
    """Whether the row has a list of messages."""
    return isinstance(row.get("messages"), list)


def parse(row: Mapping[str, Any]) -> list[Message]:
    """The conversation as it stands."""
    return message_list(row.get("messages"), "messages")
