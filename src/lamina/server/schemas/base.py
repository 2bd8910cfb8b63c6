"""What all bodies share: strict types, no unknown field, one error that names the field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lamina.errors import nearest
from lamina.server.errors import ApiError, bad_request

T = TypeVar("T")

# A list that is checked up to its first wrong item: its errors must not outgrow the body.
Items = Annotated[list[T], Field(fail_fast=True)]

# Parts of a place in a body that pydantic adds: names of types.
_TYPE = re.compile(r"str|int|float|bool|none|constrained-\w+|function-.*|.*\[.*|[A-Z]\w*")


class Body(BaseModel):
    """A JSON object that a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _knows_every_field(cls, value: Any) -> Any:
        """Stops at the first unknown field."""
        if isinstance(value, Mapping):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            unknown = next((name for name in value if name not in known), None)
            if unknown is not None:
                hint = nearest(str(unknown), known)
                raise PydanticCustomError("unknown_field", "{hint}", {"name": str(unknown)[:100], "hint": hint})
        return value


class WholeBody(Body):
    """The whole body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Refuses halves of surrogate pairs, which JSON can write and UTF-8 cannot."""
        for name, item in value.items() if isinstance(value, Mapping) else ():
            try:
                json.dumps([name, item], ensure_ascii=False).encode()
            except UnicodeEncodeError:
                message = "holds half of a surrogate pair, which is no character"
                raise PydanticCustomError(
                    "no_text", "{message}", {"name": str(name)[:100], "message": message}
                ) from None
        return value


def as_bad_request(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's errors as status 400; of the ways to read a value, the one that came the farthest."""
    first = _place(errors[0])
    error = max((error for error in errors if _place(error)[:1] == first[:1]), key=lambda error: len(_place(error)))
    place, kind, context = _place(error), error["type"], error.get("ctx") or {}
    if kind == "unknown_field":
        param = ".".join([*place, context["name"]])
        return bad_request(param, f"is not supported here. {context['hint'] or 'Leave it out'}", "unknown_field")
    if kind == "no_text":
        return bad_request(context["name"], f"{context['message']}. Send UTF-8 text")
    param = ".".join(place) or None
    if param and place[0] == "prompt":
        wanted = "must be a text, a list of texts, a list of token ids, or a list of such lists, none of them empty"
        return bad_request("prompt", wanted)
    if kind == "missing":
        return bad_request(param, "is required", "missing_field") if param else bad_request(None, "the body is missing")
    if kind == "none_required":
        return bad_request(param, "is not supported here. Leave it out", "unsupported_field")
    if kind.startswith("json_invalid"):
        return bad_request(None, f"the body is no JSON: {context.get('error', 'it cannot be read')}", "invalid_json")
    if not param:
        return bad_request(None, "the body must be a JSON object, sent with the header Content-Type: application/json")
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return bad_request(param, f"got {error['input']!r:.80}; {message[:1].lower()}{message[1:]}")


def _place(error: Any) -> list[str]:
    if str(error["type"]).startswith("json_invalid"):
        return []
    place = list(error["loc"])
    if place[:1] in (["body"], ["query"], ["path"]):
        place = place[1:]
    return [str(part)[:100] for part in place if isinstance(part, int) or not _TYPE.fullmatch(part)]
