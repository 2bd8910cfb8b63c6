"""`loss: {type: dft}`: dynamic fine-tuning. The math is in `losses/dft.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from lamina.config.losses.base import LossConfig


class DftConfig(LossConfig):
    """Dynamic fine-tuning: cross entropy whose tokens weigh as much as they are probable."""

    title: ClassVar[str] = "DFT"
    paper: ClassVar[str] = (
        "Wu et al. 2025, On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification, "
        "arXiv:2508.05629"
    )
    summary: ClassVar[str] = "weighs each token's cross entropy by its probability, so that unlikely tokens teach less"

    type: Literal["dft"] = "dft"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""


CONFIG = DftConfig
