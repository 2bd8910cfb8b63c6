"""Sections that a `type` chooses: methods, losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from lamina.config.section import Section


def any_of(classes: Mapping[str, type[Section]], default: str) -> Any:
    """The annotation of a section that is of one of several classes, by its `type`.

    Args:
        classes: By the value of `type`.
        default: The `type` of a section that names none.
    """

    def with_type(value: Any) -> Any:
        return {"type": default, **value} if isinstance(value, dict) and "type" not in value else value

    if len(classes) == 1:  # pydantic's discriminator wants at least two
        return next(iter(classes.values()))
    return Annotated[reduce(or_, classes.values()), Field(discriminator="type"), BeforeValidator(with_type)]
