"""Reads YAML files other than a run's configuration into a `Section`: all problems at once, with nearest names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lamina.config.read import read_yaml
from lamina.config.section import Section
from lamina.errors import ConfigError, Problem, nearest

S = TypeVar("S", bound=Section)


def read_section_file(cls: type[S], path: str | Path, field: str, begins: str) -> S:
    """Reads and checks a YAML file.

    Args:
        cls: What it must be.
        path: The file.
        field: The option that named it, for errors.
        begins: How such a file may begin, for the error of an empty one.

    Raises:
        ConfigError: It cannot be read, or a setting is not allowed; all of them are listed.
    """
    return read_section(cls, read_yaml(Path(path), field, begins), str(path))


def read_section(cls: type[S], values: Mapping[str, Any], source: str = "") -> S:
    """Checks settings.

    Args:
        cls: What they must be.
        values: As YAML gives them.
        source: Where they are from, for the error.

    Raises:
        ConfigError: A setting is not allowed; all of them are listed.
    """
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError([_problem(cls, detail) for detail in error.errors()], source) from None


def _problem(cls: type[BaseModel], detail: ErrorDetails) -> Problem:
    location = detail["loc"]
    field = ".".join(str(part) for part in location) or "file"
    value = repr(detail["input"])
    value = value if len(value) <= 60 else f"{value[:57]}..."
    match detail["type"]:
        case "extra_forbidden":
            allowed = sorted(_section_at(cls, location[:-1]).model_fields)
            message = f"unknown key; allowed here: {', '.join(allowed)}."
            return Problem(field, message, nearest(str(location[-1]), allowed))
        case "missing":
            return Problem(field, "is required but not given.", f"add `{location[-1]}: ...`")
        case "literal_error":
            expected = str(detail.get("ctx", {}).get("expected"))
            return Problem(
                field, f"{value} is not one of {expected}.", nearest(str(detail["input"]), _quoted(expected))
            )
        case "value_error":
            return Problem(field, str(detail["msg"]).removeprefix("Value error, "))
        case _:
            message = detail["msg"].replace("Input should be", "must be").replace("Input", "the value")
            return Problem(field, f"got {value}; {message}.")


def _quoted(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _section_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    found = cls
    for part in location:
        field = found.model_fields.get(str(part))
        inner = None if field is None else _section_in(field.annotation)
        found = found if inner is None else inner
    return found


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for part in get_args(annotation) if (inner := _section_in(part)) is not None), None)
