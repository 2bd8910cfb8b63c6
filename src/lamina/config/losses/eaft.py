"""`loss: {type: eaft}`: entropy-adaptive fine-tuning. The math is in `losses/eaft.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lamina.config.losses.base import LossConfig


class EaftConfig(LossConfig):
    """Entropy-adaptive fine-tuning: cross entropy whose tokens weigh as much as the model is uncertain."""

    title: ClassVar[str] = "EAFT"
    paper: ClassVar[str] = (
        "Diao et al. 2026, Entropy-Adaptive Fine-Tuning: Resolving Confident Conflicts to Mitigate Forgetting, "
        "arXiv:2601.02151"
    )
    summary: ClassVar[str] = "weighs each token's cross entropy by the entropy of the prediction, against forgetting"

    absent: ClassVar[Mapping[str, str]] = {"alpha": "set eaft_alpha", "k": "set eaft_k"}

    type: Literal["eaft"] = "eaft"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    eaft_alpha: Annotated[float, Field(ge=0.0)] = 1.0
    """Exponent of the entropy; 0 is cross entropy."""

    eaft_k: Annotated[int, Field(ge=2)] = 20
    """The most probable tokens of which the entropy is taken."""


CONFIG = EaftConfig
