"""`method: {type: bottleneck}`: the fields of bottleneck adapters. The math is in `methods/bottleneck.py`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lamina.config.methods.base import MethodConfig

DEFAULT_REDUCTION = 16.0


class BottleneckConfig(MethodConfig):
    """Bottleneck adapters: small two-layer networks after, or parallel to, the attention and feed-forward blocks."""

    title: ClassVar[str] = "Bottleneck adapters"
    paper: ClassVar[str] = (
        "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv:1902.00751; "
        "Pfeiffer et al. 2020, arXiv:2005.00247; He et al. 2021, arXiv:2110.04366"
    )
    summary: ClassVar[str] = "small two-layer networks after or parallel to a layer's blocks"
    learning_rate: ClassVar[float] = 3e-3

    type: Literal["bottleneck"] = "bottleneck"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    variant: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    """Position: after attention and feed-forward (`houlsby`), after feed-forward (`pfeiffer`), or parallel to it
    (`parallel`)."""

    reduction_factor: Annotated[float, Field(ge=1.0)] | None = None
    """The model's width divided by this is the bottleneck's width; 16 unless `bottleneck_size` is given."""

    bottleneck_size: Annotated[int, Field(ge=1)] | None = None
    """Width of the bottleneck, instead of `reduction_factor`."""

    non_linearity: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Activation between the two layers."""

    scaling: Annotated[float, Field(gt=0.0)] = 1.0
    """Scaling factor of the network's output; He et al. use 4 for `parallel`."""

    @model_validator(mode="after")
    def _check_size(self) -> BottleneckConfig:
        if self.reduction_factor is not None and self.bottleneck_size is not None:
            raise ValueError("reduction_factor and bottleneck_size both set the bottleneck's width; keep one of them")
        return self

    def size(self, width: int) -> int:
        """Returns the width of the bottleneck for a model of the given `width`; at least 1."""
        if self.bottleneck_size is not None:
            return self.bottleneck_size
        factor = DEFAULT_REDUCTION if self.reduction_factor is None else self.reduction_factor
        return max(1, int(width // factor))


CONFIG = BottleneckConfig
