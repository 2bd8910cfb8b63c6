"""`method: {type: gain}`: the fields of `gain.py`."""

from typing import ClassVar, Literal

from lamina.config.methods.base import MethodConfig
from lamina.config.targets import TargetModules


class GainConfig(MethodConfig):
    """Trains one factor per layer."""

    title: ClassVar[str] = "Gain"
    paper: ClassVar[str] = "none"
    summary: ClassVar[str] = "a trained factor on the output of each linear layer; folds into the weights"

    type: Literal["gain"] = "gain"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    target_modules: TargetModules = "all-linear"
    """The linear layers to adapt."""


CONFIG = GainConfig
