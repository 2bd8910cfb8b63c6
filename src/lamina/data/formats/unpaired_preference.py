"""`unpaired_preference`: an answer with a `label` that says whether it is desirable (KTO's format); turns as in the
other formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Example, Kind
from lamina.data.formats._fields import (
    RowError,
    has_label,
    has_pair,
    label_field,
    message_list,
    system_message,
    template_kwargs,
    tool_list,
)
from lamina.data.formats.prompt_completion import question_and_answer

FIELDS = ("label",)
OPTIONAL_FIELDS: tuple[str, ...] = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "system",
    "tools",
    "chat_template_kwargs",
)


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has a true-or-false label, and a conversation that it applies to."""
    return (
        has_label(row) and not has_pair(row) and (_turns_field(row) is not None or {"prompt", "completion"} <= {*row})
    )


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the conversation with its label."""
    label, name = label_field(row), _turns_field(row)
    if name is not None:
        turns = message_list(row[name], name)
        turns = [*system_message(row, turns), *turns]
    elif "prompt" in row:
        turns = question_and_answer(row)
    else:
        raise RowError("there is a 'label', but no answer: add 'messages', or 'prompt' and 'completion'")
    tools, kwargs = tool_list(row, "tools"), template_kwargs(row)
    return Example(tuple(turns), number, Kind.UNPAIRED_PREFERENCE, tools, label=label, template_kwargs=kwargs)


def _turns_field(row: Mapping[str, Any]) -> str | None:
    return next((name for name in ("messages", "conversations") if row.get(name) is not None), None)
