"""The base class of every loss's configuration."""

from __future__ import annotations

from typing import ClassVar

from lamina.config.section import Section


class LossConfig(Section):
    """The `loss:` section. Each loss's own class adds its fields, with TRL's names."""

    title: ClassVar[str]
    """The loss's name in messages, such as `cross entropy`."""

    paper: ClassVar[str] = ""
    """The paper that introduced it."""

    summary: ClassVar[str]
    """One sentence on what the loss optimizes."""

    type: str
    """The loss's name, which is also the name of its file."""
