"""The base class of every configuration section: strict, without unknown keys, and immutable."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue


class Section(BaseModel):
    """A section of the configuration.

    Strict: a quoted number is not a number, and `1` is not `true`. An unknown key is an error. The text below a field
    is its description in the JSON Schema.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Builds the JSON Schema, with the descriptions of fields.

        pydantic's `use_attribute_docstrings` would read the sources of all sections at each start of `lamina`.
        """
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        texts = describe_fields(cls)
        for name, value in own.get("properties", {}).items():
            if name in texts:
                value.setdefault("description", texts[name])
        return schema


@functools.cache
def describe_fields(cls: type[BaseModel]) -> Mapping[str, str]:
    """Reads the text below each field of a section, in the class that it has the field from."""
    found = {name: field.description for name, field in cls.model_fields.items() if field.description}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Section) or base.__module__.startswith("pydantic"):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError):  # made by `create_model`
            continue
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                    found[name] = inspect.cleandoc(text)
    return {name: text for name, text in found.items() if name in cls.model_fields}
