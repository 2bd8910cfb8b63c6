"""`text`: plain documents, for continued pretraining; every token is in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lamina.data.example import Example, Kind
from lamina.data.formats._fields import cell, is_cell, text_field

FIELDS = ("text",)
OPTIONAL_FIELDS: tuple[str, ...] = ()

# Columns that show that a `text` column is not the row's whole content.
_OF_OTHERS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "output",
    "chosen",
    "rejected",
    "input_ids",
)


def detect(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has a text, and no field of another format."""
    return "text" in row and is_cell(row["text"]) and all(cell(row.get(name)) == "" for name in _OF_OTHERS)


def parse(row: Mapping[str, Any], number: int) -> Example:
    """Parses the document."""
    return Example((), number, Kind.TEXT, text=text_field(row, "text"))
