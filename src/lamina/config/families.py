"""Sections whose class depends on their `type`: methods and losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from lamina.config.section import Section


def any_of(classes: Mapping[str, type[Section]], default: str) -> Any:
    """Returns the annotation of a section that has one of several classes, chosen by its `type`.

    Args:
        classes: The class for each value of `type`.
        default: The `type` of a section that does not give one.
    """

    def with_type(value: Any) -> Any:
        return {"type": default, **value} if isinstance(value, dict) and "type" not in value else value

    if len(classes) == 1:  # a pydantic discriminator requires at least two
        return next(iter(classes.values()))
    return Annotated[reduce(or_, classes.values()), Field(discriminator="type"), BeforeValidator(with_type)]
