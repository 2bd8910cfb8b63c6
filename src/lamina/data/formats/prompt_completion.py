"""`prompt_completion`: one question and one answer, each as text or as a list of messages (TRL's shape)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Message
from lamina.data.formats._fields import message_list, text_field

FIELDS = ("prompt", "completion")
OPTIONAL_FIELDS: tuple[str, ...] = ("system",)


def detect(row: Mapping[str, Any]) -> bool:
    """Whether the row has both fields."""
    return "prompt" in row and "completion" in row


def parse(row: Mapping[str, Any]) -> list[Message]:
    """The prompt as the user's turn (or its turns), the completion as the assistant's."""
    system = text_field(row, "system", required=False)
    messages = [Message("system", system)] if system else []
    for field, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.get(field), list):
            messages += message_list(row[field], field)
        else:
            messages.append(Message(role, text_field(row, field)))
    return messages
