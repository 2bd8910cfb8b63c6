"""`prompt_completion`: a prompt and a completion, each as text or as a list of messages (TRL's format)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.chat.message import Message
from lamina.data.example import Example
from lamina.data.formats._fields import (
    RowError,
    answer_turns,
    as_context,
    has_columns,
    has_label,
    has_pair,
    prompt_turns,
    system_message,
    template_kwargs,
    tool_list,
)

FIELDS = ("prompt", "completion")
OPTIONAL_FIELDS: tuple[str, ...] = ("system", "tools", "chat_template_kwargs")


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has both fields."""
    return has_columns(row, "prompt", "completion") and not has_label(row) and not has_pair(row)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the prompt as the user's turn (or its turns) and the completion as the assistant's."""
    turns, tools = tuple(question_and_answer(row)), tool_list(row, "tools")
    return Example(turns, number, tools=tools, template_kwargs=template_kwargs(row))


def question_and_answer(row: Mapping[str, Any]) -> list[Message]:
    """Returns the row's turns; only those of the completion are in the loss."""
    prompt = as_context(prompt_turns(_present(row, "prompt"), "prompt"))
    return [*system_message(row, prompt), *prompt, *answer_turns(_present(row, "completion"), "completion")]


def _present(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise RowError(f"field {name!r} is missing")
    return row[name]
