"""`sharegpt`: `conversations`, a list of turns with `from` and `value`; calls and results are separate turns."""

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

FIELDS = ("conversations",)
OPTIONAL_FIELDS: tuple[str, ...] = ("system", "tools", "chat_template_kwargs")


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has a list of turns, without a label or a second answer."""
    value = row.get("conversations")
    return (is_turns(value, "from") or is_turns(value, "role")) and not has_label(row) and not has_pair(row)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the conversation, preceded by the `system` field."""
    turns = message_list(row.get("conversations"), "conversations")
    turns, tools = (*system_message(row, turns), *turns), tool_list(row, "tools")
    return Example(turns, number, tools=tools, template_kwargs=template_kwargs(row))
