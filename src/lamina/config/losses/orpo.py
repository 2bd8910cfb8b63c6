"""`loss: {type: orpo}`: odds ratio preference optimization. The math is in `losses/orpo.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from lamina.config.losses.base import Beta, LossConfig


class OrpoConfig(LossConfig):
    """Odds ratio preference optimization: fine-tuning on chosen answers that also lowers the odds of rejected ones."""

    title: ClassVar[str] = "ORPO"
    paper: ClassVar[str] = (
        "Hong et al. 2024, ORPO: Monolithic Preference Optimization without Reference Model, arXiv:2403.07691"
    )
    summary: ClassVar[str] = "learns chosen answers and lowers the odds of rejected ones, in one stage from the base"
    whole_rows: ClassVar[bool] = True
    absent: ClassVar[Mapping[str, str]] = {
        "reference": "leave it out: ORPO needs no reference",
        "max_length": "set data.max_length",
    }

    type: Literal["orpo"] = "orpo"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    beta: Beta = 0.1
    """Weight of the odds ratio beside the likelihood of chosen answers (the paper's lambda)."""


CONFIG = OrpoConfig
