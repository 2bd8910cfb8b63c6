"""The type of a method's `target_modules` field."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _check_pattern(value: str | list[str]) -> str | list[str]:
    if isinstance(value, str) and value != "all-linear":
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression ({error})") from None
    return value


TargetModules = Annotated[str | Annotated[list[str], Field(min_length=1)], AfterValidator(_check_pattern)]
"""`all-linear`, a list of names (each must match the end of a module's name), or one regular expression."""
