"""`loss: {type: asft}`: anchored supervised fine-tuning. The math is in `losses/asft.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lamina.config.losses.base import LossConfig


class AsftConfig(LossConfig):
    """Anchored supervised fine-tuning: DFT, with a penalty on how far the distributions move from the base's."""

    title: ClassVar[str] = "ASFT"
    paper: ClassVar[str] = "Zhu et al. 2025, Anchored Supervised Fine-Tuning, arXiv:2509.23753"
    summary: ClassVar[str] = "is DFT with an anchor: the divergence from the base's own distributions"
    absent: ClassVar[Mapping[str, str]] = {
        "reference": "leave it out: the anchor is the base with the adapter off",
        "alpha": "set asft_alpha",
        "kl_weight": "set asft_alpha",
    }

    type: Literal["asft"] = "asft"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    asft_alpha: Annotated[float, Field(ge=0.0)] = 0.1
    """Weight of the divergence; 0 is DFT."""


CONFIG = AsftConfig
