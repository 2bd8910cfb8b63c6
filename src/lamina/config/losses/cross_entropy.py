"""`loss: {type: cross_entropy}`: supervised fine-tuning. The math is in `losses/cross_entropy.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from lamina.config.losses.base import LossConfig


class CrossEntropyConfig(LossConfig):
    """Cross entropy over the supervised tokens."""

    title: ClassVar[str] = "cross entropy"
    summary: ClassVar[str] = "makes the supervised tokens of answers and plain text more probable"

    type: Literal["cross_entropy"] = "cross_entropy"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""


CONFIG = CrossEntropyConfig
