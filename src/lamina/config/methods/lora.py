"""`method: {type: lora}`: the fields of LoRA. The mathematics is in `methods/lora.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from lamina.config.methods.base import MethodConfig
from lamina.config.section import Section

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0.0)]
LayerIndex = Annotated[int, Field(ge=0)]
Names = Annotated[list[str], Field(min_length=1)]

INITS = "true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora, eva or loftq"
_NAMED_INIT = re.compile(r"gaussian|orthogonal|pissa|pissa_niter_\d+|olora|eva|loftq")


class EvaConfig(Section):
    """How `init_lora_weights: eva` looks at the training data."""

    rho: Annotated[float, Field(ge=1.0)] = 2.0
    """A layer's rank becomes at most rho times what it was; 1 leaves all ranks as they are."""

    tau: Annotated[float, Field(ge=0.0, le=1.0)] = 0.99
    """A direction is found when its cosine with that of the step before is at least this."""

    whiten: bool = False
    """Divide each direction by the root of its singular value."""

    adjust_scaling_factors: bool = True
    """Change a layer's lora_alpha in proportion to its rank, so that alpha / r stays."""


class LoftqConfig(Section):
    """How `init_lora_weights: loftq` splits each weight into a quantized one and B A."""

    loftq_iter: Annotated[int, Field(ge=1)] = 5
    """Rounds of quantizing and fitting A and B, at most; a weight stops when a round gains nothing."""


class LoraConfig(MethodConfig):
    """Low-rank adaptation: W x + s B A x with a frozen W."""

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685"
    summary: ClassVar[str] = "a trained low-rank product beside each frozen linear layer; folds into the weights"
    absent: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("ensure_weight_tying", "lora_bias", "target_parameters", "trainable_token_indices", "use_bdlora"),
        "peft's own LoRA has it: `type: peft` and `peft_type: LORA`, with peft's fields and defaults",
    )

    type: Literal["lora"] = "lora"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    r: Rank = 16
    """Rank of the product B A."""

    lora_alpha: Alpha = 32
    """The product is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with `use_rslora`)."""

    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input."""

    target_modules: str | Names = "all-linear"
    """`all-linear`, a list of names (each must match a module's last names), or one regular expression."""

    exclude_modules: str | Names | None = None
    """Modules to leave out of those: a list of names, or one regular expression."""

    layers_to_transform: LayerIndex | Annotated[list[LayerIndex], Field(min_length=1)] | None = None
    """Only the decoder layers with these indices (from 0); modules that `target_modules` names in full stay."""

    layers_pattern: str | Names | None = None
    """Name of the list that those indices refer to, such as `layers` or `h`; null takes the first numbered one."""

    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    """Other ranks for some modules: last names or a regular expression, and the rank. The first match counts."""

    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)
    """Other values of lora_alpha, in the same way."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""

    use_dora: bool = False
    """Scale the outputs to trained magnitudes: DoRA (Liu et al. 2024, arXiv:2402.09353)."""

    init_lora_weights: bool | str = True
    """How A and B begin: true (A uniform, B zero), gaussian, orthogonal, pissa, pissa_niter_N, olora, eva, loftq
    (with `quantization`), or false (both random, so that training does not begin at the base)."""

    eva_config: EvaConfig | None = None
    """Settings of `init_lora_weights: eva`."""

    loftq_config: LoftqConfig | None = None
    """Settings of `init_lora_weights: loftq`."""

    lora_fa: bool = False
    """Train B alone, with A frozen as it was drawn (Zhang et al. 2023, LoRA-FA, arXiv:2308.03303)."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the model are trained too: none, all, or those of the adapted layers."""

    modules_to_save: Names | None = None
    """Modules that are trained whole and saved with the adapter: every one whose name ends so, such as `lm_head`."""

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _check_names(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, str) and value != "all-linear":
            _check_regex([value])
        return value

    @field_validator("layers_pattern", "modules_to_save")
    @classmethod
    def _check_parts(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None:
            _check_regex([value] if isinstance(value, str) else value)
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _check_keys(cls, value: dict[str, float]) -> dict[str, float]:
        _check_regex(value)
        return value

    @field_validator("init_lora_weights")
    @classmethod
    def _check_init(cls, value: bool | str) -> bool | str:
        if isinstance(value, str) and not _NAMED_INIT.fullmatch(value):
            raise ValueError(f"{value!r} is not one of {INITS}")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> LoraConfig:
        wrong = []
        for init, settings in (("eva", self.eva_config), ("loftq", self.loftq_config)):
            if settings is not None and self.init_lora_weights != init:
                wrong.append(f"{init}_config does nothing without init_lora_weights: {init}; set both or remove it")
        if self.lora_fa and self.starts_in_the_base:
            wrong.append(
                f"lora_fa freezes A, but init_lora_weights: {self.init_lora_weights} is there to train the part of the "
                "base that A and B begin with; use one of the two"
            )
        if self.use_dora and self.starts_in_the_base:
            wrong.append(
                f"use_dora scales the base and what is added together, and init_lora_weights: {self.init_lora_weights} "
                "takes a part out of the base first; use one of the two"
            )
        odd = sorted({r for r in (self.r, *self.rank_pattern.values()) if r % 2})
        if odd and self.init_lora_weights == "orthogonal":
            wrong.append(f"init_lora_weights: orthogonal gives half of the rank to each factor, so {odd[0]} is no rank")
        if self.layers_to_transform is not None and self._targets_regex:
            wrong.append("layers_to_transform does nothing beside a regular expression in target_modules; say it there")
        if self.layers_pattern is not None and self.layers_to_transform is None:
            wrong.append("layers_pattern does nothing without layers_to_transform; set both or remove it")
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    @property
    def _targets_regex(self) -> bool:
        return isinstance(self.target_modules, str) and self.target_modules != "all-linear"

    @property
    def starts_in_the_base(self) -> bool:
        """Whether A and B begin as a part of W, which is then left out of W."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith(("pissa", "olora"))

    @property
    def scaling(self) -> float:
        """The factor s in front of B A, for modules that no pattern matches."""
        return self.lora_alpha / self._divisor(self.r)

    def rank_of(self, module: str) -> int:
        """The rank of the module of that name."""
        key = matching_key(self.rank_pattern, module)
        return self.r if key is None else self.rank_pattern[key]

    def narrowest(self, module: str) -> int:
        # A rank that is given for a module by name is an error where it does not fit, and no reason to leave it out.
        return self.r if matching_key(self.rank_pattern, module) is None else 1

    def alpha_of(self, module: str) -> float:
        """The lora_alpha of the module of that name."""
        key = matching_key(self.alpha_pattern, module)
        return self.lora_alpha if key is None else self.alpha_pattern[key]

    def scaling_of(self, module: str) -> float:
        """The factor s of the module of that name."""
        return self.alpha_of(module) / self._divisor(self.rank_of(module))

    def _divisor(self, r: int) -> float:
        return r**0.5 if self.use_rslora else r


def matching_key(patterns: Iterable[str], module: str) -> str | None:
    """The first of the patterns that fits a module's name, or the last parts of it; None if there is none.

    >>> matching_key(["q_proj", r"layers\\.0\\..*"], "model.layers.0.mlp.up_proj")
    'layers\\\\.0\\\\..*'
    """
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)


def _check_regex(patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression ({error})") from None


CONFIG = LoraConfig
