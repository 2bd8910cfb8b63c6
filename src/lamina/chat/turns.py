"""Turns messages into the input of chat templates: dicts in transformers' format, or text if a template has no tools.

A template that does not support tools gets them as text in the Hermes format, which many models have seen: schemas
between <tools> and </tools> in the system turn, a call between <tool_call> and </tool_call> in the answer, and a result
between <tool_response> and </tool_response> in a user turn. Reasoning that a template does not support is written
between <think> and </think> in front of the answer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lamina.chat.message import Message, ToolCall
from lamina.errors import DataError

THINK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_LEADING_THINK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)

_TOOLS_INTRODUCTION = (
    "You may call functions. Their signatures, as JSON Schema:\n<tools>\n{schemas}\n</tools>\n"
    'To call one, write its name and arguments as JSON:\n<tool_call>\n{{"name": ..., "arguments": ...}}\n</tool_call>'
)


def as_turn(message: Message) -> dict[str, Any]:
    """Returns the message as a dict for chat templates."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        turn |= {"reasoning_content": message.thinking, "thinking": message.thinking}
    if message.tool_calls:
        turn["tool_calls"] = [_as_call(call) for call in message.tool_calls]
    if message.name:
        turn["name"] = message.name
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def as_tools(tools: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns tools as OpenAI schemas, and wraps bare functions.

    Raises:
        DataError: A tool has no name.
    """
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    for tool in wrapped:
        if not (isinstance(tool["function"], dict) and tool["function"].get("name")):
            raise DataError(
                f"a tool has no name: {json.dumps(tool)[:120]}. Fix: give each tool as "
                '{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}.'
            )
    return wrapped


def without_thinking(message: Message) -> Message:
    """Returns the message without its reasoning, in `thinking` or in the content."""
    cuts = [match.span() for match in THINK.finditer(message.content)]
    return dataclasses.replace(_cut(message, cuts), thinking="")


def separate_thinking(message: Message) -> Message:
    """Returns the message with the reasoning at the start of its content moved to `thinking`."""
    match = None if message.thinking else _LEADING_THINK.match(message.content)
    if match is None:
        return message
    return dataclasses.replace(_cut(message, [match.span()]), thinking=match.group(1).strip("\n"))


def thinking_in_content(message: Message) -> Message:
    """Returns the message with its reasoning moved to the start of its content."""
    if not message.thinking:
        return message
    head = f"<think>\n{message.thinking}\n</think>\n\n"
    marked = tuple((start + len(head), end + len(head)) for start, end in message.marked)
    return dataclasses.replace(message, content=head + message.content, thinking="", marked=marked)


def tools_in_content(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], has_system: bool
) -> tuple[Message, ...]:
    """Returns the conversation with tools, calls and results as text in the Hermes format.

    Args:
        messages: The conversation.
        tools: Schemas of the functions.
        has_system: Whether the template supports a system turn; if not, the schemas go in front of the first user turn.
    """
    written: list[Message] = []
    for message in messages:
        if message.role == "tool":
            result = f"<tool_response>\n{message.content}\n</tool_response>"
            if written and written[-1].role == "user" and written[-1].content.endswith("</tool_response>"):
                result = f"{written.pop().content}\n{result}"
            written.append(Message("user", result))
        elif message.tool_calls:
            calls = [
                f"<tool_call>\n{_json({'name': c.name, 'arguments': c.arguments})}\n</tool_call>"
                for c in message.tool_calls
            ]
            content = "\n".join([*([message.content] if message.content else []), *calls])
            written.append(dataclasses.replace(message, content=content, tool_calls=()))
        else:
            written.append(message)
    if not tools:
        return tuple(written)
    introduction = _TOOLS_INTRODUCTION.format(schemas="\n".join(_json(tool) for tool in tools))
    roles = [message.role for message in written]
    if "system" in roles:
        place = roles.index("system")
        content = f"{written[place].content}\n\n{introduction}" if written[place].content else introduction
        written[place] = dataclasses.replace(written[place], content=content)
    elif has_system or "user" not in roles:
        written.insert(0, Message("system", introduction))
    else:
        place = roles.index("user")
        shift = len(introduction) + 2
        marked = tuple((start + shift, end + shift) for start, end in written[place].marked)
        content = f"{introduction}\n\n{written[place].content}"
        written[place] = dataclasses.replace(written[place], content=content, marked=marked)
    return tuple(written)


def with_short_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Returns the conversation with call ids of nine letters and digits, which some templates require.

    Calls without an id get one. Results without an id are assigned to the calls in order.
    """
    written: list[Message] = []
    open_calls: list[str] = []
    for turn, message in enumerate(messages):
        if message.tool_calls:
            calls = tuple(
                dataclasses.replace(call, id=_short_id(call.id or f"{turn}.{place}"))
                for place, call in enumerate(message.tool_calls)
            )
            open_calls = [call.id for call in calls]
            written.append(dataclasses.replace(message, tool_calls=calls))
        elif message.role == "tool":
            wanted = _short_id(message.tool_call_id) if message.tool_call_id else next(iter(open_calls), "")
            if wanted in open_calls:
                open_calls.remove(wanted)
            written.append(dataclasses.replace(message, tool_call_id=wanted or _short_id(str(turn))))
        else:
            written.append(message)
    return tuple(written)


def _as_call(call: ToolCall) -> dict[str, Any]:
    shape: dict[str, Any] = {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    return shape | ({"id": call.id} if call.id else {})


def _short_id(name: str) -> str:
    if len(name) == 9 and name.isascii() and name.isalnum():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _cut(message: Message, cuts: Sequence[tuple[int, int]]) -> Message:
    """Returns the message without some ranges of its content, and shifts the marked ranges."""
    if not cuts:
        return message

    def moved(place: int) -> int:
        return place - sum(min(max(place - start, 0), end - start) for start, end in cuts)

    content, done = [], 0
    for start, end in cuts:
        content.append(message.content[done:start])
        done = end
    marked = tuple((moved(start), moved(end)) for start, end in message.marked)
    return dataclasses.replace(message, content="".join(content) + message.content[done:], marked=marked)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
