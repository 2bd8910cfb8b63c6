"""`preference`: two answers, `chosen` and `rejected`, to one prompt.

The prompt is in `prompt`, in `conversations` or `messages`, or in Alpaca's `instruction`. Without any of these, both
answers are whole conversations, and the turns that they share at the start are the prompt. Both may also be whole
conversations in addition to a prompt (UltraFeedback), which must then be part of the shared turns. Data for reward
models has the same format, with a `margin`. An answer is a text, a turn, or a list of turns.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from lamina.chat.message import Message
from lamina.data.example import Example, Kind
from lamina.data.formats._fields import (
    RowError,
    answer_turns,
    as_context,
    cell,
    has_pair,
    message_list,
    prompt_turns,
    system_message,
    template_kwargs,
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
    "chat_template_kwargs",
    "margin",
)


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has a chosen and a rejected answer."""
    return has_pair(row)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the row: prompt and chosen answer as the conversation, and the rejected answer separately."""
    prompt = _prompt(row)
    chosen, rejected = (answer_turns(_present(row, name), name) for name in ("chosen", "rejected"))
    if not prompt or len(chosen) > 1 or len(rejected) > 1:
        shared = _shared_beginning(chosen, rejected)
        if not _is_part(prompt, shared):
            raise RowError(
                f"chosen has {len(chosen)} turns and rejected {len(rejected)}, but they do not both start with the "
                "prompt; an answer is one turn, or a conversation that starts with the prompt"
            )
        if not shared and (len(chosen) > 1 or len(rejected) > 1):
            raise RowError(
                "chosen and rejected do not start with the same turn, so they are not two answers to one prompt; both "
                "must start with the prompt"
            )
        prompt, chosen, rejected = shared, chosen[len(shared) :], rejected[len(shared) :]
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if len(turns) != 1:
            raise RowError(f"{name} has {len(turns)} turns after the prompt; an answer must be one turn")
        if turns[0].role != "assistant":
            raise RowError(
                f"{name} ends with a turn with the role {turns[0].role!r}; an answer must be an assistant turn"
            )
    turns = (*system_message(row, prompt), *as_context(prompt), *chosen)
    return Example(
        turns,
        number,
        Kind.PREFERENCE,
        tool_list(row, "tools"),
        rejected=tuple(rejected),
        margin=_margin(row),
        template_kwargs=template_kwargs(row),
    )


def _present(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise RowError(f"field {name!r} is missing")
    return row[name]


def _shared_beginning(chosen: Sequence[Message], rejected: Sequence[Message]) -> list[Message]:
    """Returns the turns that both conversations start with, excluding their last ones."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _is_part(prompt: Sequence[Message], shared: Sequence[Message]) -> bool:
    """Returns whether the turns of a separate prompt occur consecutively in the shared turns."""
    size = len(prompt)
    return any(list(shared[at : at + size]) == list(prompt) for at in range(len(shared) - size + 1))


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    given = [name for name in ("prompt", "conversations", "messages", "instruction") if cell(row.get(name))]
    if "messages" in given and row["messages"] == row.get("chosen"):  # a copy of the chosen conversation
        given.remove("messages")
    if len(given) > 1:
        raise RowError(f"the row has a prompt in {given[0]!r} and in {given[1]!r}; keep one")
    if not given:
        return []
    if given == ["instruction"]:
        return instruction_turns(row)
    name = given[0]
    return prompt_turns(row[name], name) if name == "prompt" else message_list(row[name], name)


def _margin(row: Mapping[str, Any]) -> float | None:
    value = row.get("margin")
    if isinstance(value, str):  # as CSV files have it
        value = value.strip() or None
        with contextlib.suppress(ValueError):
            value = None if value is None else float(value)
    if value is None:
        return None
    if isinstance(value, str):
        raise RowError(f"field 'margin' is {value!r}, not a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"field 'margin' is {type(value).__name__}, not a number")
    if not abs(value) <= sys.float_info.max:  # nor is NaN
        raise RowError(f"field 'margin' is {value}, not a finite number")
    return float(value)
