"""Reads calls of functions out of answers: those in the Hermes format, which `chat/turns.py` writes.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bern"}}
    </tool_call>

Calls that a template writes in another format stay text.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

_BEGIN, _END = "<tool_call>", "</tool_call>"


def read_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Splits an answer into its text and its calls, as OpenAI has them.

    An answer with anything that looks like a call and is none is text as a whole.
    """
    before, begun, rest = text.partition(_BEGIN)
    calls = []
    while begun:
        written, ended, after = rest.partition(_END)
        call = _call(written)
        between, begun, rest = after.partition(_BEGIN)
        if call is None or not ended or between.strip():
            return text, []
        calls.append(call)
    return (before.strip(), calls) if calls else (text, [])


class CallReader:
    """Reads one answer as it arrives: text goes on at once, and calls are held until the end."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False

    def hear(self, text: str) -> str:
        """Takes a piece, and returns what is certainly no part of a call."""
        self._held += text
        if self._begun:
            return ""
        place = self._held.find(_BEGIN)
        self._begun = place >= 0
        if not self._begun:
            longest = min(len(_BEGIN) - 1, len(self._held))
            place = len(self._held) - next((n for n in range(longest, 0, -1) if _BEGIN.startswith(self._held[-n:])), 0)
        told, self._held = self._held[:place], self._held[place:]
        return told

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest: text, and calls."""
        return read_calls(self._held)


def _call(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    function = {"name": value["name"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
