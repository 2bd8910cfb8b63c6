"""`loss: {type: cpo}`: contrastive preference optimization. The math is in `losses/cpo.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from lamina.config.losses.base import Beta, LossConfig


class CpoConfig(LossConfig):
    """Contrastive preference optimization: DPO without a reference, with the likelihood of chosen answers added."""

    title: ClassVar[str] = "CPO"
    paper: ClassVar[str] = "Xu et al. 2024, Contrastive Preference Optimization, arXiv:2401.08417"
    summary: ClassVar[str] = "makes chosen answers more probable, and more so than rejected ones, without a reference"
    learning_rate_factor: ClassVar[float] = 0.01
    whole_rows: ClassVar[bool] = True
    absent: ClassVar[Mapping[str, str]] = {
        "reference": "leave it out: CPO needs no reference",
        "simpo_gamma": "use loss.type=simpo",
        "max_length": "set data.max_length",
    }

    type: Literal["cpo"] = "cpo"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    beta: Beta = 0.1
    """Factor of the difference between the log-probabilities; in `ipo` it is that paper's tau."""

    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """How the difference becomes a loss. `ipo` takes averages over an answer's tokens, the others take sums."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of pairs that are assumed to be the wrong way around; only with `sigmoid`."""

    cpo_alpha: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the likelihood of chosen answers."""

    @model_validator(mode="after")
    def _check_smoothing(self) -> CpoConfig:
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(
                f"label_smoothing has no effect with loss_type {self.loss_type}; remove it, or use sigmoid"
            )
        return self


CONFIG = CpoConfig
