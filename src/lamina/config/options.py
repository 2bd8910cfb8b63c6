"""Reads the options of a plug-in, such as a scorer or an executor, by the section that it declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from lamina.config.section import Section
from lamina.errors import ConfigError, Problem, nearest

S = TypeVar("S", bound=Section)


def read_options(section: type[S], of: str, given: Mapping[str, Any], field: str) -> S:
    """Checks options.

    Args:
        section: Declares them.
        of: Whose they are, for errors.
        given: Their values by name.
        field: Where they were given, for errors.

    Raises:
        ConfigError: An option is unknown, missing, or has a value that is not allowed.
    """
    try:
        return section.model_validate(dict(given))
    except ValidationError as error:
        known = [info.alias or key for key, info in section.model_fields.items()]
        problems = {each["loc"][:1]: _problem(each, of, known, field) for each in reversed(error.errors())}
        raise ConfigError(list(problems.values())) from None


def _problem(error: Any, of: str, known: list[str], field: str) -> Problem:
    key = str(error["loc"][0])  # of a value of several kinds, the rest says which kind it is not
    if error["type"] == "extra_forbidden":
        allowed = f"its options are {', '.join(known)}" if known else "it has none"
        return Problem(f"{field}.{key}", f"{of} has no such option; {allowed}.", nearest(key, known))
    if error["type"] == "missing":
        return Problem(f"{field}.{key}", f"is required by {of}", f"write {{type: {of}, {key}: ...}}")
    return Problem(f"{field}.{key}", f"{error['input']!r} is not allowed: {error['msg']}")
