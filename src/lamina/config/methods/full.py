"""`method: {type: full}`: trains every parameter. The math is in `methods/full.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

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


CONFIG = FullConfig
