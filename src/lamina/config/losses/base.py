"""The base class of every loss's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lamina.config.section import Section

Beta = Annotated[float, Field(gt=0.0)]
ReferenceName = Literal["auto", "base", "start"]


class LossConfig(Section):
    """The `loss:` section. Each loss's own class adds its fields, with TRL's names."""

    title: ClassVar[str]
    """The loss's name in messages, such as `cross entropy`."""

    paper: ClassVar[str] = ""
    """The paper that introduced it."""

    summary: ClassVar[str]
    """One sentence on what the loss optimizes."""

    learning_rate_factor: ClassVar[float] = 1.0
    """Factor of the method's default learning rate, which was measured with cross entropy."""

    whole_rows: ClassVar[bool] = False
    """Whether rows are trained on whole or not at all, with nothing but their last answers in the loss."""

    data_format: ClassVar[str | None] = None
    """The format of the rows that it learns from, where rows may be taken for those of another one."""

    absent: ClassVar[Mapping[str, str]] = {}
    """Fields of TRL's configuration that users may look for here, and what to do instead."""

    type: str
    """The loss's name, which is also the name of its file."""

    @property
    def reference_name(self) -> ReferenceName | None:
        """Which model the loss compares with; None if it needs no reference."""
        return None
