"""A turn of a conversation, and the function calls in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

# Other tools' names for the same roles.
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
    """A function call in an assistant turn.

    Attributes:
        name: The function's name.
        arguments: The arguments by name.
        id: The id that the answering `tool` turn refers to; empty if the data has none.
    """

    name: str
    arguments: dict[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: One of `ROLES`.
        content: The text; may be empty if there are tool calls.
        tool_calls: The function calls of an assistant turn.
        thinking: The assistant's reasoning, if it is separate from the content.
        name: For a `tool` turn, the name of the function that returned the result.
        tool_call_id: For a `tool` turn, the id of the call that it answers.
        supervised: Whether an assistant turn is in the loss: False (left out), True (requested), or None
            (`data.train_on` decides).
        marked: Character ranges of `content` to put in the loss, if the data marks parts of a turn.
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
        """Whether the turn has neither text nor calls."""
        return not (self.content.strip() or self.tool_calls)

    def words(self) -> str:
        """Returns all text of the turn, calls included, as one string."""
        calls = (f"{call.name} {call.arguments}" for call in self.tool_calls)
        return "\n".join(part for part in (self.thinking, self.content, *calls) if part)
