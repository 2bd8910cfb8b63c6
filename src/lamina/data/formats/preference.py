"""`preference`: two answers, `chosen` and `rejected`, to one prompt.

The prompt stands in `prompt`, in `conversations` or `messages`, in Alpaca's `instruction`, or in neither: then both
answers are whole conversations, and the turns that they begin with alike are the prompt. Reward pairs have that shape
too, with a `margin`. An answer is a text, a turn, or a list of turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from lamina.data.example import Example, Kind, Message
from lamina.data.formats._fields import (
    RowError,
    answer_turns,
    has_pair,
    message_list,
    prompt_turns,
    system_message,
    tool_list,
)
from lamina.data.formats.alpaca import instruction_turns

FIELDS = ("chosen", "rejected")
OPTIONAL_FIELDS: tuple[str, ...] = (
    "prompt",
    "conversations",
    "messages",
    "instruction",
    "input",
    "history",
    "system",
    "tools",
    "margin",
)


def detect(row: Mapping[str, Any]) -> bool:
    """Whether the row has two answers."""
    return has_pair(row)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Prompt and chosen answer as the conversation, the rejected answer beside it."""
    prompt = _prompt(row)
    chosen = answer_turns(row.get("chosen"), "chosen")
    rejected = answer_turns(row.get("rejected"), "rejected")
    if not prompt:
        shared = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))]
        prompt = [*system_message(row, shared), *shared]
        chosen, rejected = chosen[len(shared) :], rejected[len(shared) :]
        if not chosen or not rejected:
            raise RowError("chosen and rejected are the same")
    tools = tool_list(row, "tools")
    if len(chosen) > 1:  # turns between the prompt and the final answer differ from answer to answer
        raise RowError(f"chosen has {len(chosen)} turns after the prompt; an answer is one turn")
    return Example((*prompt, *chosen), number, Kind.PREFERENCE, tools, "", tuple(rejected), margin=_margin(row))


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    given = [name for name in ("prompt", "conversations", "messages", "instruction") if row.get(name)]
    if len(given) > 1:
        raise RowError(f"the prompt stands in {given[0]!r} and in {given[1]!r}")
    if not given:
        return []
    if given == ["instruction"]:
        return instruction_turns(row)
    name = given[0]
    turns = prompt_turns(row[name], name) if name == "prompt" else message_list(row[name], name)
    return [*system_message(row, turns), *turns]


def _margin(row: Mapping[str, Any]) -> float | None:
    value = row.get("margin")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"field 'margin' is {type(value).__name__}, not a number")
    return float(value)
