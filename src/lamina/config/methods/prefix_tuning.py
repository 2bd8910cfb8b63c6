"""`method: {type: prefix_tuning}`: the fields of prefix tuning. The math is in `methods/prefix_tuning.py`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lamina.config.methods.base import MethodConfig


class PrefixTuningConfig(MethodConfig):
    """Prefix tuning: trained keys and values in front of every sequence, in every attention layer."""

    title: ClassVar[str] = "Prefix tuning"
    paper: ClassVar[str] = (
        "Li & Liang 2021, Prefix-Tuning: Optimizing Continuous Prompts for Generation, arXiv:2101.00190"
    )
    summary: ClassVar[str] = "trained keys and values in front of every sequence, in every attention layer"
    learning_rate: ClassVar[float] = 1e-1
    learning_rate_follows_width: ClassVar[bool] = False

    type: Literal["prefix_tuning"] = "prefix_tuning"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    num_virtual_tokens: Annotated[int, Field(ge=1)] = 20
    """Length of the prefix."""

    prefix_projection: bool = False
    """Train a two-layer network that produces the prefix, instead of the prefix itself; only the prefix is saved."""

    encoder_hidden_size: Annotated[int, Field(ge=1)] | None = None
    """Width of that network; null means the width of the keys."""

    init_weights: Literal["zero"] | None = None
    """`zero` starts with keys and values of zero; null starts with random ones."""

    @model_validator(mode="after")
    def _check_encoder(self) -> PrefixTuningConfig:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ValueError(
                "encoder_hidden_size has no effect without prefix_projection; set prefix_projection: true or remove it"
            )
        return self


CONFIG = PrefixTuningConfig
