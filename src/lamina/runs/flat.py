"""Converts records of a run to flat JSON objects, and back.

A record is a dataclass. Its JSON has one key for each field, in order; a field that is None and has None as its default
is left out. One field of a record may take `the_rest`: its content follows the other fields at the same level, such as
the metrics that a loss or a method adds to those of every run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

_READ = "read"


class Record(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


R = TypeVar("R", bound=Record)


def the_rest(read: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Returns metadata for the dataclass field that takes all keys without a field of their own.

    Args:
        read: Converts these keys and values to the field's value.
    """
    return {_READ: read}


def to_json(record: Record) -> dict[str, Any]:
    """Converts a record to plain data."""
    content: dict[str, Any] = {}
    rest: Mapping[str, Any] = {}
    for each in fields(record):
        value = getattr(record, each.name)
        if _READ in each.metadata:
            rest = value if isinstance(value, Mapping) else to_json(value)
        elif value is not None or each.default is not None:
            content[each.name] = _plain(value)
    return {**content, **rest}


def from_json(kind: type[R], content: Mapping[str, Any]) -> R:
    """Reads what `to_json` wrote.

    Keys without a field come from a newer version and are ignored, unless the record has `the_rest`.

    Raises:
        ValueError: A field without a default is missing, or a value has another type; the message names it.
    """
    names = {each.name for each in fields(kind) if _READ not in each.metadata}
    values = {name: value for name, value in content.items() if name in names}
    for each in fields(kind):
        if _READ in each.metadata:
            values[each.name] = each.metadata[_READ]({n: v for n, v in content.items() if n not in names})
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else str(first["msg"])) from None


@functools.cache
def _adapter(kind: type[R]) -> TypeAdapter[R]:
    return TypeAdapter(kind)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return to_json(value) if is_dataclass(value) and not isinstance(value, type) else value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dictionaries by dotted name.

    >>> flatten({"a": {"b": 1, "c": {}}, "d": [2]})
    {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in flatten(item, f"{prefix}.{key}".lstrip(".")).items()}
