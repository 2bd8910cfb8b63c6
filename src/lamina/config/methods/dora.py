"""`method: {type: dora}`: LoRA with trained magnitudes. The math is in `methods/dora.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from lamina.config.methods.lora import LoraConfig


class DoraConfig(LoraConfig):
    """Weight-decomposed low-rank adaptation: a low-rank update of the direction, and a separate magnitude."""

    title: ClassVar[str] = "DoRA"
    paper: ClassVar[str] = "Liu et al. 2024, DoRA: Weight-Decomposed Low-Rank Adaptation, arXiv:2402.09353"
    summary: ClassVar[str] = "LoRA that also trains the norm of each weight row; can be merged into the weights"

    type: Literal["dora"] = "dora"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    use_dora: Literal[True] = True  # pyright: ignore[reportIncompatibleVariableOverride]
    """Always true here. `type: lora` has it as an option."""


CONFIG = DoraConfig
