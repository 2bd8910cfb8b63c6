"""The bodies of `/v1/adapters`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lamina.server.schemas.base import WholeBody
from lamina.server.settings import NAME

Name = Annotated[str, Field(pattern=rf"^{NAME}$")]


class LoadBody(WholeBody):
    """A request to load an adapter."""

    name: Name
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    pin: bool = False


class PinBody(WholeBody):
    """A request to keep an adapter in memory, or no longer."""

    pin: bool
