"""Finds conversations whose turns are not in the order of a chat."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from lamina.chat.message import Message, ToolCall
from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings
from lamina.data.example import Example, Kind

_FAULTS = {
    "two_user_turns": ("two user turns follow each other", "Look for a missing answer between them."),
    "two_assistant_turns": ("two assistant turns follow each other", "Join them, or look for a missing question."),
    "no_answer": ("there is no answer", "Complete the conversation, or remove it."),
    "empty_turn": ("a turn is empty", "Complete the turn, or remove the conversation."),
    "system_not_first": ("a system turn is not first", "Move it to the start; few templates render it anywhere else."),
    "assistant_first": ("an assistant turn is first", "Look for the missing question."),
    "tool_without_call": ("a tool result has no call", "Look for the missing call before it."),
    "call_without_result": (
        "a call has no result, but the chat continues",
        "Look for the missing result after it.",
    ),
    "unknown_tool": ("a call names a tool that the row does not offer", "Correct the name, or add the tool."),
    "wrong_arguments": ("a call's arguments do not match the tool", "Correct the arguments, or the tool's schema."),
}


class Check(BaseCheck):
    """All findings are warnings. If a template refuses such a row, that is a separate error."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._tallies = {code: Tally(settings) for code in _FAULTS}
        self._conversations = 0

    def see(self, seen: Seen) -> None:
        example = seen.example
        if example is None or example.kind in (Kind.TEXT, Kind.CLASSIFICATION):
            return
        self._conversations += 1
        told: set[str] = set()
        for code, detail in _faults(example):
            if code not in told:
                self._tallies[code].add(seen, detail)
            told.add(code)

    def finish(self) -> list[Finding]:
        found = []
        for code, (title, advice) in _FAULTS.items():
            found += self._tallies[code].finding(code, Severity.WARNING, title, advice, self._conversations)
        return found


def _faults(example: Example) -> Iterator[tuple[str, str]]:
    messages = example.messages
    roles = [message.role for message in messages]
    order = ", ".join(roles)
    for role in ("user", "assistant"):
        if any(first == second == role for first, second in itertools.pairwise(roles)):
            yield f"two_{role}_turns", order
    if "assistant" not in roles:
        yield "no_answer", order
    if "system" in roles[1:]:
        yield "system_not_first", order
    if next((role for role in roles if role != "system"), "") == "assistant":
        yield "assistant_first", order
    for number, message in enumerate(messages, start=1):
        if message.is_empty:
            yield "empty_turn", f"turn {number}, {message.role}"
    if "tool" in roles or any(message.tool_calls for message in messages):
        yield from _tool_faults(messages, example.tools)


def _tool_faults(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    offered = {str(schema.get("name")): schema for schema in (tool.get("function", tool) for tool in tools)}
    open_calls = 0
    for number, message in enumerate(messages, start=1):
        if message.role == "tool":
            if not open_calls:
                yield "tool_without_call", f"turn {number}"
            open_calls = max(0, open_calls - 1)
            continue
        if open_calls:
            yield "call_without_result", f"turn {number}, {message.role}"
        open_calls = len(message.tool_calls)
        for call in message.tool_calls:
            if offered and call.name not in offered:
                yield "unknown_tool", f"turn {number}: {call.name}"
            elif offered and (wrong := _wrong_arguments(call, offered[call.name])):
                yield "wrong_arguments", f"turn {number}: {call.name}: {wrong}"


def _wrong_arguments(call: ToolCall, schema: dict[str, Any]) -> str:
    parameters = schema.get("parameters") or {}
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return ""
    missing = [name for name in parameters.get("required") or () if name not in call.arguments]
    if missing:
        return f"{missing[0]} is missing"
    if parameters.get("additionalProperties"):
        return ""
    unknown = [name for name in call.arguments if name not in properties]
    return f"{unknown[0]} is unknown" if unknown else ""
