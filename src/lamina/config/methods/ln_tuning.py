"""`method: {type: ln_tuning}`: trains the norms. The math is in `methods/ln_tuning.py`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lamina.config.methods.base import MethodConfig


class LnTuningConfig(MethodConfig):
    """LayerNorm tuning: trains only the weights (and biases) of the norm layers."""

    title: ClassVar[str] = "LayerNorm tuning"
    paper: ClassVar[str] = (
        "Zhao et al. 2023, Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning, "
        "arXiv:2312.11420"
    )
    summary: ClassVar[str] = "trains the base model's own norm layers: very few parameters, on any model"
    learning_rate: ClassVar[float] = 1e-3

    type: Literal["ln_tuning"] = "ln_tuning"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    target_modules: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Norm layers to train: null for all, a list of names (each must match the end of a module's name), or one regular
    expression."""


CONFIG = LnTuningConfig
