"""Prepares a conversation for its template: reasoning and tools become text if the template does not support them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lamina.chat.message import Message
from lamina.chat.support import TemplateSupport
from lamina.chat.turns import (
    separate_thinking,
    thinking_in_content,
    tools_in_content,
    with_short_ids,
    without_thinking,
)
from lamina.errors import DataError

Thinking = Literal["keep", "strip", "unsupervised"]


def shape_turns(
    messages: Sequence[Message],
    schemas: list[dict[str, Any]] | None,
    support: TemplateSupport,
    thinking: Thinking,
    name: str,
) -> tuple[Sequence[Message], list[dict[str, Any]] | None]:
    """Returns the turns, and the tool schemas that remain to be passed to the template.

    Args:
        messages: The conversation.
        schemas: Schemas of the tools; None without tools.
        support: What the template supports.
        thinking: What to do with reasoning.
        name: The template's name, for errors.

    Raises:
        DataError: The template would drop the text of a turn with tool calls.
    """
    if not (schemas or any(map(is_more_than_text, messages))):
        return messages, schemas
    messages = [_with_reasoning(m, support, thinking, m is messages[-1]) for m in messages]
    if schemas or any(message.tool_calls or message.role == "tool" for message in messages):
        if not support.tools:
            return tools_in_content(messages, schemas or (), support.system), None
        if not support.text_with_calls and any(m.tool_calls and m.content.strip() for m in messages):
            raise DataError(
                f"the {name} chat template drops the text of an assistant turn with tool calls. Fix: remove the "
                "text (with data.thinking: strip, if it is reasoning), or set data.chat_template to a built-in "
                "template, which keeps both."
            )
        if support.short_ids:
            messages = with_short_ids(messages)
    return messages, schemas


def check_text(messages: Sequence[Message], text: str, support: TemplateSupport, name: str, bos: str) -> None:
    """Checks that a rendering has all system turns, and not two BOS tokens at the start.

    Args:
        messages: The turns as rendered.
        text: The rendered text.
        support: What the template supports.
        name: The template's name.
        bos: The tokenizer's BOS token; empty if it has none.

    Raises:
        DataError: A system turn is missing, or BOS is repeated.
    """
    for message in messages:
        if message.role == "system" and (support.drops_system or message.content.strip() not in text):
            raise DataError(
                f"the {name} chat template drops the system turn. Fix: move its text to the first user turn, or set "
                "data.chat_template to a built-in template."
            )
    if bos and text.startswith(2 * bos):
        raise DataError(f"the {name} chat template writes {bos} twice at the start. Fix: correct the template.")


def is_more_than_text(message: Message) -> bool:
    """Returns whether the turn has more than a role and text."""
    return bool(
        message.tool_calls
        or message.thinking
        or message.role == "tool"
        or (message.role == "assistant" and "<think>" in message.content)
    )


def _with_reasoning(message: Message, support: TemplateSupport, thinking: Thinking, is_last: bool) -> Message:
    if message.role != "assistant":
        return message
    # A template that removes the reasoning from an earlier answer's content would leave white space in its place.
    drops = support.drops_thinking and not support.thinking
    if thinking == "strip" or (drops and not is_last):
        return without_thinking(message)
    return separate_thinking(message) if support.thinking else thinking_in_content(message)
