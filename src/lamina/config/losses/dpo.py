"""`loss: {type: dpo}`: direct preference optimization and its variants. The math is in `losses/dpo.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lamina.config.losses.base import Beta, LossConfig, ReferenceName

DpoLossType = Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "apo_down", "sigmoid_norm", "bco_pair", "sft"]

# The types that read `label_smoothing`.
_SMOOTHED = ("sigmoid", "robust")


class DpoConfig(LossConfig):
    """Direct preference optimization: chosen answers gain on rejected ones, measured against a reference model."""

    title: ClassVar[str] = "DPO"
    paper: ClassVar[str] = "Rafailov et al. 2023, Direct Preference Optimization, arXiv:2305.18290"
    summary: ClassVar[str] = "makes chosen answers gain probability on rejected ones, relative to a reference model"
    learning_rate_factor: ClassVar[float] = 0.01
    whole_rows: ClassVar[bool] = True
    absent: ClassVar[Mapping[str, str]] = {
        "ref_model": "leave it out: the reference is the base with the adapter off, or the adapter of method.from",
        "precompute_ref_log_probs": "leave it out: the reference is always computed once, before training",
        "disable_dropout": "set method.lora_dropout to 0 instead",
        "simpo_gamma": "use loss.type=simpo",
        "cpo_alpha": "use loss.type=cpo, or loss_type: [sigmoid, sft] with loss_weights",
        "max_length": "set data.max_length",
    }

    type: Literal["dpo"] = "dpo"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Loss name."""

    beta: Beta = 0.1
    """How closely to stay to the reference: larger is closer. In `ipo` it is the paper's tau."""

    loss_type: list[DpoLossType] = Field(default_factory=lambda: ["sigmoid"], min_length=1)
    """One or several of `sigmoid`, `hinge`, `ipo`, `robust`, `apo_zero`, `apo_down`, `sigmoid_norm`, `bco_pair` and
    `sft`, which are added up. For example, `[sigmoid, sft]` is RPO, and `[sigmoid, bco_pair, sft]` MPO."""

    loss_weights: list[Annotated[float, Field(ge=0.0)]] | None = None
    """A weight for each of `loss_type`; null means 1 each."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of pairs that are assumed to be the wrong way around. With `sigmoid` this is cDPO; with `robust`, the loss
    is corrected for them."""

    reference: ReferenceName = "auto"
    """What to compare with: `start`, the adapter that training starts from (`method.from`); `base`, the base with the
    adapter off; `auto` is the start if there is one, and the base otherwise."""

    @field_validator("loss_type", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_combinations(self) -> DpoConfig:
        wrong = []
        if len(set(self.loss_type)) < len(self.loss_type):
            wrong.append(f"loss_type names a loss twice: {', '.join(self.loss_type)}; give it a larger weight instead")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            wrong.append(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(self.loss_type)} losses in loss_type; "
                "give one for each"
            )
        if self.loss_weights is not None and not any(self.loss_weights):
            wrong.append("loss_weights are all 0, so there is nothing to learn; set one of them above 0")
        if self.label_smoothing and not set(self.loss_type) & set(_SMOOTHED):
            wrong.append(
                f"label_smoothing has no effect with loss_type {', '.join(self.loss_type)}; remove it, or use "
                f"{' or '.join(_SMOOTHED)}"
            )
        weights = self.loss_weights or [1.0] * len(self.loss_type)
        counted = [name for name, weight in zip(self.loss_type, weights, strict=False) if weight]
        if counted == ["sft"]:
            alone = "loss_type [sft] alone" if len(self.loss_type) == 1 else "loss_weights leave sft alone, which"
            wrong.append(f"{alone} does not read the rejected answers; add sigmoid, or use cross_entropy")
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    @property
    def reference_name(self) -> ReferenceName:
        return self.reference


CONFIG = DpoConfig
