"""`method: {type: lora}`: the fields of LoRA. The mathematics is in `methods/lora.py`."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from lamina.config.methods.base import MethodConfig


class LoraConfig(MethodConfig):
    """Low-rank adaptation: W x + s B A x with a frozen W."""

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685"
    summary: ClassVar[str] = "a trained low-rank product beside each frozen linear layer; folds into the weights"

    type: Literal["lora"] = "lora"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    r: Annotated[int, Field(ge=1)] = 16
    """Rank of the product B A."""

    lora_alpha: Annotated[float, Field(gt=0.0)] = 32
    """The product is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with `use_rslora`)."""

    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input."""

    target_modules: str | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """`all-linear`, a list of names (each must match a module's last names), or one regular expression."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""

    @field_validator("target_modules")
    @classmethod
    def _check_pattern(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str) and value != "all-linear":
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is not a regular expression ({error})") from None
        return value

    @property
    def scaling(self) -> float:
        """The factor s in front of B A."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


CONFIG = LoraConfig
