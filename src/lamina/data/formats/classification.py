"""`classification`: a text or a conversation with the `label` of its class, for `loss: {type: classification}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Example, Kind
from lamina.data.formats._fields import (
    RowError,
    answer_turns,
    cell,
    is_cell,
    label_text,
    message_list,
    prompt_turns,
    system_message,
    template_kwargs,
    tool_list,
)

FIELDS = ("label",)
OPTIONAL_FIELDS: tuple[str, ...] = (
    "text",
    "messages",
    "conversations",
    "prompt",
    "completion",
    "system",
    "tools",
    "chat_template_kwargs",
)


def detect(row: Mapping[str, Any]) -> bool:
    """Returns False: a text with a label is plain text as well, so only the loss can tell which is meant."""
    return False


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the text or the conversation, with its class."""
    return parse_input(row, number, _category(row))


def parse_input(row: Mapping[str, Any], number: int, category: str = "") -> Example:
    """Parses the text or the conversation of a row, whose class may not be known.

    Raises:
        RowError: There is neither.
    """
    text = row.get("text", row.get("prompt"))
    if text is not None and is_cell(text) and row.get("completion") is None:
        return Example((), number, Kind.CLASSIFICATION, text=cell(text), category=category)
    name = next((name for name in ("messages", "conversations") if row.get(name) is not None), None)
    if name is not None:
        turns = message_list(row[name], name)
    elif row.get("prompt") is not None:
        turns = prompt_turns(row["prompt"], "prompt")
        if row.get("completion") is not None:
            turns = [*turns, *answer_turns(row["completion"], "completion")]
    elif "text" in row or "prompt" in row:  # null: an empty text, which is dropped with a reason
        return Example((), number, Kind.CLASSIFICATION, category=category)
    else:
        raise RowError("there is nothing to classify: add 'text', 'prompt' or 'messages'")
    turns = [*system_message(row, turns), *turns]
    tools, kwargs = tool_list(row, "tools"), template_kwargs(row)
    return Example(tuple(turns), number, Kind.CLASSIFICATION, tools, category=category, template_kwargs=kwargs)


def _category(row: Mapping[str, Any]) -> str:
    if label := label_text(row.get("label")):
        return label
    found = f"is {row['label']!r}" if "label" in row else "is missing"
    raise RowError(f"field 'label' {found}; allowed are the name or the number of a class")
