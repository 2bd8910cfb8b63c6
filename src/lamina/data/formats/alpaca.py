"""`alpaca`: `instruction`, `input` (may be empty) and `output`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Message
from lamina.data.formats._fields import text_field

FIELDS = ("instruction", "output")
OPTIONAL_FIELDS: tuple[str, ...] = ("input", "system")


def detect(row: Mapping[str, Any]) -> bool:
    """Whether the row has an instruction and an output."""
    return "instruction" in row and "output" in row


def parse(row: Mapping[str, Any]) -> list[Message]:
    """Instruction and input become the user's turn, with an empty line between them."""
    instruction, extra = text_field(row, "instruction"), text_field(row, "input", required=False)
    system = text_field(row, "system", required=False)
    question = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    turns = [Message("user", question), Message("assistant", text_field(row, "output"))]
    return [Message("system", system), *turns] if system else turns
