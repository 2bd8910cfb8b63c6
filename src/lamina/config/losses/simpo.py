"""`loss: {type: simpo}`: simple preference optimization. The math is in `losses/simpo.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lamina.config.losses.base import Beta, LossConfig


class SimpoConfig(LossConfig):
    """Simple preference optimization: average log-probabilities with a target margin, without a reference."""

    title: ClassVar[str] = "SimPO"
    paper: ClassVar[str] = (
        "Meng et al. 2024, SimPO: Simple Preference Optimization with a Reference-Free Reward, arXiv:2405.14734"
    )
    summary: ClassVar[str] = (
        "makes chosen answers more probable per token than rejected ones by a margin, without a reference"
    )
    learning_rate_factor: ClassVar[float] = 0.01
    whole_rows: ClassVar[bool] = True
    absent: ClassVar[Mapping[str, str]] = {
        "reference": "leave it out: SimPO needs no reference",
        "gamma_beta_ratio": "set simpo_gamma to it times beta",
        "gamma": "set simpo_gamma",
        "cpo_alpha": "leave it out: SimPO has no likelihood term; loss.type=cpo has one",
        "max_length": "set data.max_length",
    }

    type: Literal["simpo"] = "simpo"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    beta: Beta = 2.0
    """Factor of the difference between the average log-probabilities. Averages are small, so the paper uses 2 to 10."""

    simpo_gamma: Annotated[float, Field(ge=0.0)] = 1.0
    """Target margin, in the same units as beta times that difference; the paper's best gamma / beta is 0.3 to 0.55."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of pairs that are assumed to be the wrong way around."""


CONFIG = SimpoConfig
