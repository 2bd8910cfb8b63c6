"""`messages`: a conversation in the OpenAI chat format, including tool calls and tools; or turns with `from`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Example
from lamina.data.formats._fields import (
    has_label,
    has_pair,
    is_turns,
    message_list,
    system_message,
    template_kwargs,
    tool_list,
)

FIELDS = ("messages",)
OPTIONAL_FIELDS: tuple[str, ...] = ("system", "tools", "functions", "chat_template_kwargs")


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has a list of messages, without a label or a second answer."""
    value = row.get("messages")
    return (is_turns(value, "role") or is_turns(value, "from")) and not has_label(row) and not has_pair(row)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the conversation, preceded by the `system` field."""
    turns = message_list(row.get("messages"), "messages")
    turns, tools = (*system_message(row, turns), *turns), tool_list(row, "tools", "functions")
    return Example(turns, number, tools=tools, template_kwargs=template_kwargs(row))
