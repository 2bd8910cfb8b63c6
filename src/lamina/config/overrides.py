"""Parses the value of a `key.sub=value` override by the type of the key in the schema.

Where the schema expects a string, the value is taken literally, whatever it would mean in YAML: `output_dir=runs/a #b`
and `output_dir=o: 4` are folders. The value is parsed as YAML where a structure is expected.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from lamina.config.root import Config
from lamina.config.yaml_text import comment_in, parse_scalar, parse_yaml
from lamina.errors import ConfigError, Problem

_CLOSING = {"[": "]", "{": "}"}


def read_value(path: Sequence[str], text: str, override: str, schema: type[BaseModel] = Config) -> Any:
    """Parses the value of an override.

    Args:
        path: The parts of the key.
        text: The value as written.
        override: The whole override, for messages.
        schema: The class whose field the key names.

    Raises:
        ConfigError: A structure is expected, and the value is not valid YAML, or part of it would be lost as a comment.
    """
    kinds = _kinds(schema, path)
    if dict in kinds and (str not in kinds or _is_bracketed(text)):
        if comment := comment_in(text):
            raise ConfigError(
                Problem(
                    ".".join(path),
                    f"{override!r} contains {comment!r}, which YAML drops as a comment",
                    f"put quotes around the value that contains it, such as {{prompt: 'a {comment}'}}, or remove it",
                )
            )
        return parse_yaml(text, override)
    value = parse_scalar(text.strip())
    if str not in kinds or (not isinstance(value, str) and type(value) in kinds):
        return value
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0] and isinstance(quoted := _quoted(text), str):
        return quoted
    return text


def _quoted(text: str) -> Any:
    try:
        return parse_yaml(text, text)
    except ConfigError:
        return None


def _is_bracketed(text: str) -> bool:
    """Returns whether the text is enclosed in brackets, or has an unclosed one; `[ab]*.jsonl` is a string."""
    text = text.strip()
    opening = text[:1]
    if opening not in _CLOSING:
        return False
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == opening) - (letter == _CLOSING[opening])
        if depth == 0:
            return place == len(text) - 1
    return True


def _kinds(annotation: Any, path: Sequence[str]) -> set[type]:
    """Returns which of str, int, float, bool, NoneType and dict (any structure) a field may have; all if unknown."""
    found = set().union(*(_kinds_of(each, path) for each in _alternatives(annotation)))
    return found or {str, int, float, bool, types.NoneType, dict}


def _kinds_of(annotation: Any, path: Sequence[str]) -> set[type]:
    if path:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(path[0])
            return _kinds(field.annotation, path[1:]) if field else set()
        return _kinds(get_args(annotation)[1], path[1:]) if get_origin(annotation) is dict else set()
    if get_origin(annotation) is Literal:
        return {type(value) for value in get_args(annotation)}
    if annotation in (str, int, bool, types.NoneType):
        return {annotation}
    return {int, float} if annotation is float else {dict}


def _alternatives(annotation: Any) -> list[Any]:
    """Returns the members of a union, flattened, without their annotations."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [each for member in get_args(annotation) for each in _alternatives(member)]
    return [annotation]
