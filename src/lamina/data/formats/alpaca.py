"""`alpaca`: `instruction`, `input` (may be empty) and `output`, with earlier turns in `history`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.chat.message import Message
from lamina.data.example import Example
from lamina.data.formats._fields import RowError, has_columns, has_label, has_pair, system_message, text_field

FIELDS = ("instruction", "output")
OPTIONAL_FIELDS: tuple[str, ...] = ("input", "system", "history")


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has an instruction and an output."""
    return has_columns(row, "instruction", "output") and not has_label(row) and not has_pair(row)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the row; instruction and input become the user's turn, separated by an empty line."""
    answer = Message("assistant", text_field(row, "output"))
    return Example((*system_message(row), *instruction_turns(row), answer), number)


def instruction_turns(row: Mapping[str, Any]) -> list[Message]:
    """Returns the earlier turns, and the instruction with its input."""
    instruction, extra = text_field(row, "instruction"), text_field(row, "input", required=False)
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return [*_history(row), Message("user", question)]


def _history(row: Mapping[str, Any]) -> list[Message]:
    turns: list[Message] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError(f"field 'history' is {type(history).__name__}, not a list of pairs")
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"history[{number}] is not a pair of texts (a question and its answer)")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return turns
