"""`messages`: a conversation in the OpenAI chat shape, tool calls and their functions included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Example
from lamina.data.formats._fields import has_label, has_pair, is_turns, message_list, tool_list

FIELDS = ("messages",)
OPTIONAL_FIELDS: tuple[str, ...] = ("tools", "functions")


def detect(row: Mapping[str, Any]) -> bool:
    """Whether the row has a list of messages, and neither a judgement of them nor a second answer."""
    return is_turns(row.get("messages"), "role") and not has_label(row) and not has_pair(row)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """The conversation as it stands."""
    return Example(tuple(message_list(row.get("messages"), "messages")), number, tools=tool_list(row, *OPTIONAL_FIELDS))
