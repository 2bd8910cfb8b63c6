"""`method: {type: full}`: every parameter is trained. The mathematics is in `methods/full.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from lamina.config.methods.base import MethodConfig


class FullConfig(MethodConfig):
    """Full fine-tuning: every parameter of the base is trained."""

    title: ClassVar[str] = "Full fine-tuning"
    paper: ClassVar[str] = "no paper of its own; with GaLore, Zhao et al. 2024, arXiv:2403.03507"
    summary: ClassVar[str] = "every parameter of the base is trained: the ceiling, and the most memory"
    learning_rate: ClassVar[float] = 1e-4
    base_is_read_only: ClassVar[bool] = False

    type: Literal["full"] = "full"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""


CONFIG = FullConfig
