"""`loss: {type: reward}`: trains a reward model. The math is in `losses/reward.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lamina.config.losses.base import LossConfig


class RewardConfig(LossConfig):
    """A reward model: a head that scores answers, trained with the adapter so that chosen answers score higher."""

    title: ClassVar[str] = "reward model"
    paper: ClassVar[str] = "Ouyang et al. 2022, Training language models to follow instructions, arXiv:2203.02155"
    summary: ClassVar[str] = "trains a score for answers, higher for chosen than for rejected ones"
    learning_rate_factor: ClassVar[float] = 0.1
    whole_rows: ClassVar[bool] = True
    absent: ClassVar[Mapping[str, str]] = {
        "num_labels": "leave it out: a reward model has one score",
        "modules_to_save": "leave it out: the head is always trained and saved with the adapter",
        "disable_dropout": "set method.lora_dropout to 0 instead",
        "max_length": "set data.max_length",
    }

    type: Literal["reward"] = "reward"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    center_rewards_coefficient: Annotated[float, Field(gt=0.0)] | None = None
    """Weight of the squared sum of both scores, which centers scores around 0 (0.01 is usual); null for none."""


CONFIG = RewardConfig
