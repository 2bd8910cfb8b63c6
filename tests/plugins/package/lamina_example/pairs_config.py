"""`loss: {type: pairs}`: the fields of `pairs.py`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lamina.config.losses.base import LossConfig


class PairsConfig(LossConfig):
    """Makes the chosen answer of a pair more probable than the rejected one."""

    title: ClassVar[str] = "pairs"
    summary: ClassVar[str] = "makes chosen answers more probable than rejected ones"

    type: Literal["pairs"] = "pairs"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    beta: Annotated[float, Field(gt=0.0)] = 0.1
    """Factor of the difference of log-probabilities."""


CONFIG = PairsConfig
