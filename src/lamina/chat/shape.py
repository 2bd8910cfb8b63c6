"""Shapes a conversation for its template: reasoning and tools where it has a place for them, else in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lamina.chat.message import Message
from lamina.chat.probe import Probe
from lamina.chat.turns import (
    thinking_apart,
    thinking_in_content,
    tools_in_content,
    with_short_ids,
    without_thinking,
)
from lamina.errors import DataError

Thinking = Literal["keep", "strip", "unsupervised"]


def shape_turns(
    messages: Sequence[Message], schemas: list[dict[str, Any]] | None, probe: Probe, thinking: Thinking, name: str
) -> tuple[Sequence[Message], list[dict[str, Any]] | None]:
    """The turns, and the schemas that are left to hand to the template.

    Args:
        messages: The conversation.
        schemas: Of the tools; None without any.
        probe: What the template has a place for.
        thinking: What becomes of reasoning.
        name: Of the template, for errors.

    Raises:
        DataError: The template would leave out what a turn says beside its calls.
    """
    if not (schemas or any(map(is_more_than_text, messages))):
        return messages, schemas
    messages = [_with_reasoning(m, probe, thinking, m is messages[-1]) for m in messages]
    if schemas or any(message.tool_calls or message.role == "tool" for message in messages):
        if not probe.tools:
            return tools_in_content(messages, schemas or (), probe.system), None
        if not probe.text_beside_calls and any(m.tool_calls and m.content.strip() for m in messages):
            raise DataError(
                f"the {name} chat template leaves out what an assistant turn says beside its tool calls. Fix: "
                "remove the words (data.thinking: strip, if they are reasoning), or set data.chat_template to a "
                "built-in template, which keeps both."
            )
        if probe.short_ids:
            messages = with_short_ids(messages)
    return messages, schemas


def check_text(messages: Sequence[Message], text: str, probe: Probe, name: str, bos: str) -> None:
    """Looks whether a rendering has all system turns, and BOS once.

    Args:
        messages: The turns, as they were rendered.
        text: The rendering.
        probe: What the template has a place for.
        name: Of the template.
        bos: The tokenizer's BOS; empty for none.

    Raises:
        DataError: It has not.
    """
    for message in messages:
        if message.role == "system" and (probe.drops_system or message.content.strip() not in text):
            raise DataError(
                f"the {name} chat template drops the system turn. Fix: move its words into the first user "
                "turn, or set data.chat_template to a built-in template."
            )
    if bos and text.startswith(2 * bos):
        raise DataError(f"the {name} chat template writes {bos} twice at the start. Fix: correct the template.")


def is_more_than_text(message: Message) -> bool:
    """Whether the turn is more than a role and words."""
    return bool(
        message.tool_calls
        or message.thinking
        or message.role == "tool"
        or (message.role == "assistant" and "<think>" in message.content)
    )


def _with_reasoning(message: Message, probe: Probe, thinking: Thinking, is_last: bool) -> Message:
    if message.role != "assistant":
        return message
    # A template that takes the reasoning out of an earlier answer's text would leave white space in its place.
    drops = probe.drops_thinking and not probe.thinking
    if thinking == "strip" or (drops and not is_last):
        return without_thinking(message)
    return thinking_apart(message) if probe.thinking else thinking_in_content(message)
