"""Helpers that the formats share: they read a field of a row as text or as turns, with errors that name the field."""

from __future__ import annotations

import ast
import dataclasses
import datetime
import decimal
import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lamina.chat.message import ROLE_ALIASES, ROLES, Message, ToolCall
from lamina.config.data import RESERVED_KWARGS
from lamina.data.read.times import TIMES, time_text

# In the ShareGPT format, a call is a turn of its own.
_CALL_ROLES = ("function_call", "tool_call")

# Where a row has what is learned, in any format.
_LEARNED = ("text", "messages", "conversations", "completion", "output", "chosen", "input_ids")

_WHOLE = re.compile(r"-?\d+\.0+")
_WRITTEN = bool | int | float | decimal.Decimal | datetime.timedelta | uuid.UUID


class RowError(ValueError):
    """A row does not fit its format. The reader adds the file and the row."""


def text_field(row: Mapping[str, Any], name: str, required: bool = True) -> str:
    """Returns a text field of the row, whose numbers and nulls are texts (`cell`); an optional one may be missing."""
    if name not in row:
        if required:
            raise RowError(f"field {name!r} is missing")
        return ""
    value = cell(row[name])
    if not isinstance(value, str):
        raise RowError(f"field {name!r} is {type(value).__name__}, not text")
    return value


def cell(value: Any) -> Any:
    """Returns the value of a field that may be text as a CSV file has it, so that rows from any source are read alike:
    a number as its digits, a date as `time_text` writes it, null and NaN as empty text. Lists and objects stay as they
    are."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, TIMES):
        return time_text(value)
    return str(value) if isinstance(value, _WRITTEN) else value


def is_cell(value: Any) -> bool:
    """Returns whether `cell` makes a text of the value."""
    return isinstance(cell(value), str)


def has_columns(row: Mapping[str, Any], *names: str) -> bool:
    """Returns whether the row has the columns. Where all are empty, and another has what is learned, it does not: a
    table that joins rows of several formats has the columns of all."""
    if not all(name in row for name in names):
        return False
    return any(cell(row[name]) != "" for name in names) or all(cell(row.get(name)) == "" for name in _LEARNED)


def system_message(row: Mapping[str, Any], messages: Sequence[Message] = ()) -> list[Message]:
    """Returns the row's `system` field as a first turn, unless the turns already start with it."""
    system = text_field(row, "system", required=False)
    if system and messages and messages[0].role == "system":
        if messages[0].content.strip() == system.strip():
            return []
        raise RowError("the row has both a 'system' field and a system turn, with different text")
    return [Message("system", system)] if system else []


def answer_turns(value: Any, name: str) -> list[Message]:
    """Returns an answer, given as text (or a number, or null), as one turn, or as a list of turns."""
    value = cell(value)
    if isinstance(value, str) and not _looks_like_turns(value):
        written = _written_by_python(value)
        return [Message("assistant", value)] if written is None else message_list(written, name)
    if isinstance(value, dict):
        return message_list([value], name)
    return message_list(value, name)


def prompt_turns(value: Any, name: str) -> list[Message]:
    """Returns a prompt, given as text (or a number, or null) or as a list of turns."""
    value = cell(value)
    if isinstance(value, list) or (isinstance(value, str) and _looks_like_turns(value)):
        return message_list(value, name)
    if isinstance(value, str) and (written := _written_by_python(value)) is not None:
        return message_list(written, name)
    if not isinstance(value, str):
        raise RowError(f"field {name!r} is {type(value).__name__}, not text")
    return [Message("user", value)]


def message_list(value: Any, name: str) -> list[Message]:
    """Parses a list of turns: `{role, content}` (OpenAI) or `{from, value}` (ShareGPT).

    An assistant turn without text or calls becomes an empty message, which the reader drops with a reason.
    """
    if isinstance(value, str):
        written = _written_by_python(value)
        value = _json(value, name, "a list of messages") if written is None else written
    if not isinstance(value, list):
        raise RowError(f"field {name!r} is {type(value).__name__}, not a list of messages")
    messages: list[Message] = []
    for position, item in enumerate(value, start=1):
        message = _message(item, f"{name}[{position}]")
        # Consecutive turns that each hold a call belong to one assistant turn.
        last = messages[-1] if messages else None
        if message.tool_calls and last and not message.content and last.role == "assistant" and _is_call(item):
            messages[-1] = dataclasses.replace(last, tool_calls=(*last.tool_calls, *message.tool_calls))
        else:
            messages.append(message)
    return messages


def tool_list(row: Mapping[str, Any], *names: str) -> tuple[dict[str, Any], ...]:
    """Returns the tools that the assistant may call, from the first of the fields that is present."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            value = _json(value, name, "a list of functions")
        if not value:
            continue
        if not isinstance(value, list):
            raise RowError(f"field {name!r} is not a list of function schemas")
        return tuple(_tool(tool, f"{name}[{number}]") for number, tool in enumerate(value, start=1))
    return ()


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """Checks a function schema, bare or inside `{type: function, function: ...}`, and parses its parameters."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(inner, dict):
        raise RowError(f"{where} is not a function schema: it needs a 'name' and 'parameters'")
    parameters = inner.get("parameters")
    if isinstance(parameters, str):
        parameters = _json(parameters or "{}", f"{where}.parameters", "a JSON schema")
        inner = {**inner, "parameters": parameters}
        tool = {**tool, "function": inner} if "function" in tool else inner
    if parameters is not None and not isinstance(parameters, dict):
        raise RowError(f"{where}.parameters is {type(parameters).__name__}, not an object")
    required = (parameters or {}).get("required")
    if required is not None and not isinstance(required, list):
        raise RowError(f"{where}.parameters.required is {type(required).__name__}, not a list of names")
    return tool


def template_kwargs(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row's variables for the chat template. Null values, which tables contain, count as missing."""
    name = "chat_template_kwargs"
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        value = _json(value, name, "an object")
    if not value:
        return {}
    if not isinstance(value, dict):
        raise RowError(f"field {name!r} is {type(value).__name__}, not an object")
    if taken := [key for key in RESERVED_KWARGS if key in value]:
        raise RowError(f"field {name!r} sets {taken[0]!r}, which is reserved for the conversation itself")
    return {str(key): given for key, given in value.items() if given is not None}


def as_context(turns: Iterable[Message]) -> list[Message]:
    """Returns the turns of a prompt, with answers excluded from the loss unless the data includes them."""
    return [
        dataclasses.replace(turn, supervised=False) if turn.role == "assistant" and turn.supervised is None else turn
        for turn in turns
    ]


def label_field(row: Mapping[str, Any], name: str = "label") -> bool:
    """Parses a yes-or-no field."""
    value = _yes_or_no(row.get(name))
    if value is None:
        found = f"is {row[name]!r}" if name in row else "is missing"
        raise RowError(f"field {name!r} {found}; allowed are true and false, or 1 and 0")
    return value


def has_label(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has a label for its answer, which makes it an unpaired preference."""
    return _yes_or_no(row.get("label")) is not None


def label_text(value: Any) -> str:
    """Returns a label as text, alike from any table: whole numbers without a fraction, which a column of integers has
    where values are missing, and truth values as `True` and `False`; empty text for none, and for lists and objects."""
    text = cell(value)
    if not isinstance(text, str):
        return ""
    text = text.strip()
    if _WHOLE.fullmatch(text):
        text = text.partition(".")[0]
        return "0" if text == "-0" else text
    return text.capitalize() if text.lower() in ("true", "false") else text


def _yes_or_no(value: Any) -> bool | None:
    """Parses a yes-or-no value: true or false, 1 or 0, or the same as text; None for anything else."""
    return {"True": True, "1": True, "False": False, "0": False}.get(label_text(value))


def has_pair(row: Mapping[str, Any]) -> bool:
    """Returns whether the row has a chosen and a rejected answer."""
    return has_columns(row, "chosen", "rejected")


def is_turns(value: Any, key: str) -> bool:
    """Returns whether a field is a list of turns with `key`, or JSON text of one (as in tables)."""
    if isinstance(value, str):
        if not _looks_like_turns(value):
            value = _written_by_python(value)
        else:
            try:
                value = json.loads(value)
            except ValueError:
                return False
    return (
        isinstance(value, list)
        and all(isinstance(item, dict) for item in value)
        and (not value or any(key in item for item in value))
    )


def _looks_like_turns(text: str) -> bool:
    begin = text[:200].lstrip()
    return begin.startswith("[{") and ('"role"' in begin or '"from"' in begin)


def _written_by_python(text: str) -> list[dict[str, Any]] | None:
    """Returns the turns of a list that Python wrote as text, as `DataFrame.to_csv` does; None if it is anything else.

    `ast.literal_eval` reads constants alone, and runs nothing.
    """
    begin = text[:200].lstrip()
    if not begin.startswith("[{'") or not ("'role'" in begin or "'from'" in begin):
        return None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    complete = isinstance(value, list) and all(
        isinstance(item, dict) and ({"role", "content"} <= {*item} or {"from", "value"} <= {*item}) for item in value
    )
    return value if complete else None


def _is_call(item: Any) -> bool:
    return isinstance(item, dict) and item.get("from", item.get("role")) in _CALL_ROLES


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict) or not ("role" in item or "from" in item):
        found = f"has the keys {', '.join(map(repr, item)) or 'none'}" if isinstance(item, dict) else f"is {item!r:.80}"
        raise RowError(f"{where} is not an object with 'role' and 'content': it {found}")
    role = item["role"] if "role" in item else item["from"]
    content = item["content"] if "content" in item else item.get("value")
    if role in _CALL_ROLES:
        return Message("assistant", "", _called(content, where))
    role = ROLE_ALIASES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        others = ", ".join(ROLE_ALIASES)
        raise RowError(f"{where} has the role {role!r}; allowed roles are {', '.join(ROLES)} (or {others})")
    if len(item) == 2 and isinstance(content, str):  # nearly all turns have only a role and a text
        return Message(role, content)
    calls = _tool_calls(item, where)
    text, marked = _content(content, where, may_be_null=role == "assistant")
    return Message(
        role,
        text,
        calls,
        thinking=_optional_text(item, "reasoning_content", where) or _optional_text(item, "thinking", where),
        name=_optional_text(item, "name", where),
        tool_call_id=_optional_text(item, "tool_call_id", where),
        supervised=_supervised(item, where),
        marked=marked,
    )


def _content(content: Any, where: str, may_be_null: bool) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Returns the text of a turn, with its parts joined, and the ranges of the parts that are marked for the loss."""
    if content is None and may_be_null:
        return "", ()
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, list):
        raise RowError(f"{where} has content of type {type(content).__name__}, not text")
    text, marked = "", []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise RowError(f"{where} has content of type list with a part of type {kind!r}; only text is supported")
        if part.get("train") is True:
            marked.append((len(text), len(text) + len(part["text"])))
        text += part["text"]
    return text, tuple(marked)


def _supervised(item: Mapping[str, Any], where: str) -> bool | None:
    """Returns OpenAI's `weight` (0 or 1) or `train` (true or false) as a boolean; None if the turn has neither."""
    train, weight = item.get("train"), item.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{where} has train {train!r}, not true or false")
    if weight is not None and weight not in (0, 1):
        raise RowError(f"{where} has the weight {weight!r}; must be 0 or 1")
    if train is None and weight is None:
        return None
    return bool(weight) if train is None else train


def _tool_calls(item: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    calls = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    if isinstance(calls, str):
        calls = _json(calls, f"{where}.tool_calls", "a list of calls")
    if not isinstance(calls, list):
        raise RowError(f"{where}.tool_calls is {type(calls).__name__}, not a list of calls")
    return tuple(_tool_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls, start=1))


def _called(content: Any, where: str) -> tuple[ToolCall, ...]:
    """Parses the calls of a turn that contains only calls, as JSON."""
    value = _json(content, where, "a call") if isinstance(content, str) else content
    return tuple(_tool_call(call, where) for call in (value if isinstance(value, list) else [value]))


def _tool_call(call: Any, where: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError(f"{where} is not a call: it needs a 'name' and 'arguments'")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        arguments = _json(arguments or "{}", f"{where}.arguments", "an object of arguments")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"{where}.arguments is {type(arguments).__name__}, not an object")
    return ToolCall(function["name"], arguments, str(call.get("id") or ""))


def _optional_text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(f"{where}.{name} is {type(value).__name__}, not text")
    return value or ""


def _json(text: str, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        if text.lstrip().startswith(("[{'", "{'")):
            reason = (
                "it is text as Python prints it, such as DataFrame.to_csv writes lists; write JSON lines instead: "
                "df.to_json('rows.jsonl', orient='records', lines=True)"
            )
        raise RowError(f"{where} must be {what} in JSON, but cannot be parsed: {reason}") from None
