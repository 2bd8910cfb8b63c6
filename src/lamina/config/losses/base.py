"""What every loss's configuration has."""

from __future__ import annotations

from typing import ClassVar

from lamina.config.section import Section


class LossConfig(Section):
    """The `loss:` section. A loss's own class adds its fields, with TRL's names."""

    title: ClassVar[str]
    """The loss's name in prose, such as `cross entropy`."""

    paper: ClassVar[str] = ""
    """Where it comes from."""

    summary: ClassVar[str]
    """One sentence on what it teaches."""

    type: str
    """The loss's name, which is the name of its file."""
