"""The base of every configuration section: strict, closed to unknown keys, and unchangeable once made."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the configuration.

    Strict: a number in quotes is not a number and `1` is not `true`. Closed: an unknown key is an error.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
