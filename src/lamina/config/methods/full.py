"""`method: {type: full}`: trains every parameter. The math is in `methods/full.py`."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from lamina.config.methods.base import MethodConfig


class FullConfig(MethodConfig):
    """Full fine-tuning: trains every parameter of the base model."""

    title: ClassVar[str] = "Full fine-tuning"
    paper: ClassVar[str] = "no paper of its own; with GaLore, Zhao et al. 2024, arXiv:2403.03507"
    summary: ClassVar[str] = "trains every parameter of the base model: the upper bound on quality, and the most memory"
    learning_rate: ClassVar[float] = 1e-4
    base_is_read_only: ClassVar[bool] = False

    type: Literal["full"] = "full"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    parameters: Annotated[list[str], Field(min_length=1)] | None = None
    """Train only the parameters whose full name begins with a match of one of these regular expressions, such as
    `model[.]layers[.]3[01]` or `lm_head`; null trains all of them."""

    @field_validator("parameters")
    @classmethod
    def _check_patterns(cls, patterns: list[str] | None) -> list[str] | None:
        for pattern in patterns or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None
        return patterns

    def trains(self, parameter: str) -> bool:
        """Returns whether the parameter with that full name is trained."""
        return self.parameters is None or any(re.match(pattern, parameter) for pattern in self.parameters)


CONFIG = FullConfig
