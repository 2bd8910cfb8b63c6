"""`loss: {type: kto}`: Kahneman-Tversky optimization. The math is in `losses/kto.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lamina.config.losses.base import Beta, LossConfig, ReferenceName

Weight = Annotated[float, Field(gt=0.0)] | Literal["auto"]


class KtoConfig(LossConfig):
    """Kahneman-Tversky optimization: learns from answers that are labeled as desirable or undesirable."""

    title: ClassVar[str] = "KTO"
    paper: ClassVar[str] = (
        "Ethayarajh et al. 2024, KTO: Model Alignment as Prospect Theoretic Optimization, arXiv:2402.01306"
    )
    summary: ClassVar[str] = "makes desirable answers more probable and undesirable ones less, without pairs"
    learning_rate_factor: ClassVar[float] = 0.01
    whole_rows: ClassVar[bool] = True
    absent: ClassVar[Mapping[str, str]] = {
        "ref_model": "leave it out: the reference is the base with the adapter off, or the adapter of method.from",
        "precompute_ref_log_probs": "leave it out: the reference is always computed once, before training",
        "disable_dropout": "set method.lora_dropout to 0 instead",
        "max_length": "set data.max_length",
    }

    type: Literal["kto"] = "kto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    beta: Beta = 0.1
    """How closely to stay to the reference: larger is closer."""

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """`kto` measures rewards against an estimate of the KL divergence. `apo_zero_unpaired` measures them against 0,
    which takes half as many forward passes."""

    desirable_weight: Weight = "auto"
    """Weight of desirable answers; `auto` balances the labels as the paper recommends."""

    undesirable_weight: Weight = "auto"
    """Weight of undesirable answers; `auto` balances the labels as the paper recommends."""

    reference: ReferenceName = "auto"
    """What to compare with: `start`, the adapter that training starts from (`method.from`); `base`, the base with the
    adapter off; `auto` is the start if there is one, and the base otherwise."""

    @property
    def reference_name(self) -> ReferenceName:
        return self.reference


CONFIG = KtoConfig
