"""`method: {type: bitfit}`: the biases are trained. The mathematics is in `methods/bitfit.py`."""

from __future__ import annotations

from typing import ClassVar, Literal

from lamina.config.methods.base import MethodConfig


class BitfitConfig(MethodConfig):
    """BitFit: the biases of the base are trained, and nothing else."""

    title: ClassVar[str] = "BitFit"
    paper: ClassVar[str] = (
        "Ben Zaken et al. 2021, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
        "Language-models, arXiv:2106.10199"
    )
    summary: ClassVar[str] = "the base's own biases are trained; for models that have some (Llama has none)"
    learning_rate: ClassVar[float] = 1e-3

    type: Literal["bitfit"] = "bitfit"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""


CONFIG = BitfitConfig
