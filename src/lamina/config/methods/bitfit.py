"""`method: {type: bitfit}`: trains the biases. The math is in `methods/bitfit.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from lamina.config.methods.base import MethodConfig


class BitfitConfig(MethodConfig):
    """BitFit: trains only the biases of the base model."""

    title: ClassVar[str] = "BitFit"
    paper: ClassVar[str] = (
        "Ben Zaken et al. 2021, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
        "Language-models, arXiv:2106.10199"
    )
    summary: ClassVar[str] = "trains the base model's own biases; for models that have some (Llama has none)"
    learning_rate: ClassVar[float] = 1e-3

    type: Literal["bitfit"] = "bitfit"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""


CONFIG = BitfitConfig
