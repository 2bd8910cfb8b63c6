"""Suggests what to do with rows that a loss does not learn from: another loss, or a mapping verified on the rows."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from lamina.chat.message import Message
from lamina.config import SourceConfig
from lamina.data.columns import ColumnMapping
from lamina.data.example import Example, Kind
from lamina.data.formats import choose_format
from lamina.data.formats._fields import RowError
from lamina.data.read import Row
from lamina.errors import DataError

# Maximum number of rows to try a mapping on.
TRIED = 200


def no_loss_fix(kind: str, rows: Sequence[tuple[Row, Example]], source: SourceConfig, wanted: int, judged: int) -> str:
    """Returns a fix: the loss that learns from such rows, or how to train on the desirable answers with cross entropy.

    Args:
        kind: `preference` or `unpaired_preference`.
        rows: Some of the rows, with their examples.
        source: The settings they were read with.
        wanted: Number of labeled rows whose answer is desirable.
        judged: Number of labeled rows.
    """
    if kind == Kind.UNPAIRED_PREFERENCE:
        return (
            "set loss.type=kto to learn from the labels; or, to train on the desirable answers, write the rows "
            f"whose label is true ({wanted:,} of {judged:,}) to a separate file, without the label"
        )
    found, learn = chosen_columns(rows, source.columns), "set loss.type=dpo to learn from the pairs; or, to train"
    if found is None:
        return f"{learn} on the chosen answers, write each row as `messages`: the prompt with the chosen answer"
    mapping = ", ".join(f"{field}: {column}" for field, column in found.items())
    named = "" if source.format in (None, "auto") else " data.format=auto"
    override = shlex.quote(f"data.columns={{{mapping}}}")  # in braces, it replaces what is mapped now
    return f"{learn} on the chosen answers, map them: {override}{named}"


def chosen_columns(rows: Sequence[tuple[Row, Example]], columns: Mapping[str, str] | None) -> dict[str, str] | None:
    """Returns a column mapping that reads each row as its prompt and chosen answer; None if no usual one does."""
    return next((mapping for mapping in _candidates(rows, columns) if _agrees(rows, mapping)), None)


def _candidates(rows: Sequence[tuple[Row, Example]], columns: Mapping[str, str] | None) -> Iterator[dict[str, str]]:
    def given(*fields: str) -> dict[str, str]:
        if columns:
            return {field: columns[field] for field in fields if field in columns}
        return {field: field for field in fields if any(row.get(field) for row, _ in rows)}

    chosen = (columns or {}).get("chosen", "chosen")
    others = given("system", "tools")
    yield {"messages": chosen, **others}
    for source in given("prompt", "conversations", "messages").values():
        yield {"prompt": source, "completion": chosen, **others}
    yield {**given("instruction", "input", "history", "system"), "output": chosen}


def _agrees(rows: Sequence[tuple[Row, Example]], mapping: Mapping[str, str]) -> bool:
    apply = ColumnMapping(mapping).apply
    try:
        values = [apply(row) for row, _ in rows]
        module = choose_format(values, "auto", "")
        read = [module.parse(value, example.row) for value, (_, example) in zip(values, rows, strict=True)]
    except (RowError, DataError):
        return False
    if not {*mapping} <= {*module.FIELDS, *module.OPTIONAL_FIELDS}:
        return False
    return all(
        list(map(_said, ours.messages)) == list(map(_said, example.messages)) and ours.tools == example.tools
        for ours, (_, example) in zip(read, rows, strict=True)
    )


def _said(message: Message) -> tuple[object, ...]:
    return message.role, message.content, message.tool_calls, message.thinking
