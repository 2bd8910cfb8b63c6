"""One turn of a conversation, and the calls of functions in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

# The names that other tools give to the same roles.
ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
}


@dataclass(frozen=True)
class ToolCall:
    """A function that an assistant turn calls.

    Attributes:
        name: Of the function.
        arguments: By name.
        id: What the answering `tool` turn refers to; empty if the data has none.
    """

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: One of `ROLES`.
        content: Its text; may be empty where there are tool calls.
        tool_calls: Functions that an assistant turn calls.
        thinking: An assistant's reasoning that stands apart from its content.
        name: Of the function whose result a `tool` turn holds.
        tool_call_id: The call that a `tool` turn answers.
        supervised: Whether an assistant turn is in the loss: False (left out), True (asked for), or None (as
            `data.train_on` says).
        marked: Character ranges of `content` that are asked for, where the data marks parts of a turn.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    thinking: str = ""
    name: str = ""
    tool_call_id: str = ""
    supervised: bool | None = None
    marked: tuple[tuple[int, int], ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the turn says nothing at all."""
        return not (self.content.strip() or self.tool_calls)

    def words(self) -> str:
        """Everything that the turn says, calls included, as one text."""
        calls = (f"{call.name} {call.arguments}" for call in self.tool_calls)
        return "\n".join(part for part in (self.thinking, self.content, *calls) if part)
