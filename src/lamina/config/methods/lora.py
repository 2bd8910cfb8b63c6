"""`method: {type: lora}`: the fields of LoRA. The math is in `methods/lora.py`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lamina.config.methods.base import MethodConfig
from lamina.config.section import Section

Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[float, Field(gt=0.0)]
LayerIndex = Annotated[int, Field(ge=0)]
Names = Annotated[list[str], Field(min_length=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

INITS = "true, false, gaussian, orthogonal, pissa, pissa_niter_N, olora, eva or loftq"
_NAMED_INIT = re.compile(r"gaussian|orthogonal|pissa|pissa_niter_\d+|olora|eva|loftq")


def default_alpha(r: int, use_rslora: bool) -> float:
    """Returns the lora_alpha of a rank: with alpha / r the same for all ranks, their updates have the same size."""
    return 32 if use_rslora else 2 * r


class EvaConfig(Section):
    """Settings of `init_lora_weights: eva`, which derives A from the training data."""

    rho: Annotated[float, Field(ge=1.0)] = 2.0
    """A layer's rank becomes at most rho times the configured rank; 1 leaves all ranks unchanged."""

    tau: Annotated[float, Field(ge=0.0, le=1.0)] = 0.99
    """A direction has converged when its cosine similarity with that of the previous step is at least this."""

    whiten: bool = False
    """Divide each direction by the square root of its singular value."""

    adjust_scaling_factors: bool = True
    """Change a layer's lora_alpha in proportion to its rank, so that alpha / r stays the same."""


class LoftqConfig(Section):
    """Settings of `init_lora_weights: loftq`, which splits each weight into a quantized part and B A."""

    loftq_iter: Annotated[int, Field(ge=1)] = 5
    """Maximum number of rounds of quantizing and fitting A and B; a weight stops early when a round no longer helps."""


class LoraConfig(MethodConfig):
    """Low-rank adaptation: W x + s B A x with a frozen W."""

    title: ClassVar[str] = "LoRA"
    paper: ClassVar[str] = "Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685"
    summary: ClassVar[str] = (
        "a trained low-rank product parallel to each frozen linear layer; can be merged into the weights"
    )
    absent: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("lora_bias", "use_bdlora"),
        "peft's own LoRA supports it: `type: peft` and `peft_type: LORA`, with peft's fields and defaults",
    )

    type: Literal["lora"] = "lora"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    r: Rank = 16
    """Rank of the product B A."""

    lora_alpha: Alpha = 32
    """The product is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with `use_rslora`). Unless it is given, it moves
    with the rank, and is 2 r (with `use_rslora` it stays 32), so that one learning rate suits all ranks."""

    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input."""

    target_parameters: list[str] | None = None
    """Weights that are not those of a linear layer, such as `mlp.experts.down_proj`: names, each the end of a
    parameter's name (docs/experts.md)."""

    target_modules: str | list[str] = "all-linear"
    """`all-linear`, a list of names (each must match the end of a module's name), or one regular expression. May be
    empty beside `target_parameters`."""

    exclude_modules: str | Names | None = None
    """Modules to exclude from those: a list of names, or one regular expression."""

    layers_to_transform: LayerIndex | Annotated[list[LayerIndex], Field(min_length=1)] | None = None
    """Adapt only the decoder layers with these indices (from 0), and modules that `target_modules` gives by full
    name."""

    layers_pattern: str | Names | None = None
    """Name of the module list that those indices refer to, such as `layers` or `h`; null takes the first numbered
    list."""

    rank_pattern: dict[str, Rank] = Field(default_factory=dict)
    """Other ranks for some modules: module name (its end or a regular expression) -> rank. The first match counts."""

    alpha_pattern: dict[str, Alpha] = Field(default_factory=dict)
    """Other values of lora_alpha for some modules, in the same form."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""

    use_dora: bool = False
    """Train the magnitude of the outputs separately: DoRA (Liu et al. 2024, arXiv:2402.09353)."""

    init_lora_weights: bool | str = True
    """Initialization of A and B: true (A uniform, B zero), gaussian, orthogonal, pissa, pissa_niter_N, olora, eva,
    loftq (with `quantization`), or false (both random, so that training does not start at the base model)."""

    eva_config: EvaConfig | None = None
    """Settings of `init_lora_weights: eva`."""

    loftq_config: LoftqConfig | None = None
    """Settings of `init_lora_weights: loftq`."""

    lora_fa: bool = False
    """Train only B, with A frozen at its random initial value (Zhang et al. 2023, LoRA-FA, arXiv:2308.03303)."""

    bias: Literal["none", "all", "lora_only"] = "none"
    """Which of the model's biases to train too: none, all, or those of the adapted layers."""

    modules_to_save: Names | None = None
    """Modules to train in full and save with the adapter: all whose names end with one of these, such as `lm_head`."""

    trainable_token_indices: TokenIds | dict[str, TokenIds] | None = None
    """Tokens whose rows of the embedding are trained and saved: token ids, or token ids by module name, such as
    `{embed_tokens: [5], lm_head: [5]}`. A tied head follows the embedding. By default the tokens that `data.add_tokens`
    and `data.special_tokens` add."""

    ensure_weight_tying: bool = False
    """Adapt a tied head together with the embedding, where `target_modules` or `modules_to_save` name one of them."""

    @field_validator("target_modules")
    @classmethod
    def _check_some(cls, value: str | list[str], info: ValidationInfo) -> str | list[str]:
        if not value and not info.data.get("target_parameters"):
            raise ValueError(f"{value!r} should name modules, or be all-linear")
        return value

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
    def _fill_in_alpha(self) -> LoraConfig:
        if "lora_alpha" not in self.model_fields_set and self.start is None:
            object.__setattr__(self, "lora_alpha", default_alpha(self.r, self.use_rslora))
            self.model_fields_set.discard("lora_alpha")  # it was not given, so it follows when r changes
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> LoraConfig:
        wrong = []
        for init, settings in (("eva", self.eva_config), ("loftq", self.loftq_config)):
            if settings is not None and self.init_lora_weights != init:
                wrong.append(f"{init}_config has no effect without init_lora_weights: {init}; set both or remove it")
        if self.lora_fa and self.starts_in_the_base:
            wrong.append(
                f"lora_fa freezes A, but init_lora_weights: {self.init_lora_weights} moves a part of the base "
                "weight into A and B in order to train it; use one of the two"
            )
        if self.use_dora and self.starts_in_the_base:
            wrong.append(
                "use_dora rescales the sum of the base weight and B A, but init_lora_weights: "
                f"{self.init_lora_weights} subtracts a part from the base weight first; use one of the two"
            )
        odd = sorted({r for r in (self.r, *self.rank_pattern.values()) if r % 2})
        if odd and self.init_lora_weights == "orthogonal":
            wrong.append(
                "init_lora_weights: orthogonal gives half of the rank to each factor, so the rank cannot be odd "
                f"({odd[0]}); use an even rank"
            )
        if self.layers_to_transform is not None and self._targets_regex:
            wrong.append(
                "layers_to_transform has no effect with a regular expression in target_modules; select the layers "
                "in the expression"
            )
        if self.layers_pattern is not None and self.layers_to_transform is None:
            wrong.append("layers_pattern has no effect without layers_to_transform; set both or remove it")
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    @property
    def _targets_regex(self) -> bool:
        return isinstance(self.target_modules, str) and self.target_modules != "all-linear"

    @property
    def starts_elsewhere(self) -> bool:
        return self.init_lora_weights in (False, "loftq")

    @property
    def starts_in_the_base(self) -> bool:
        """Whether A and B start as a part of W, which is then subtracted from W."""
        return isinstance(self.init_lora_weights, str) and self.init_lora_weights.startswith(("pissa", "olora"))

    @property
    def scaling(self) -> float:
        """The scaling factor s of B A, for modules that no pattern matches."""
        return self.lora_alpha / self._divisor(self.r)

    def has_rank_of_its_own(self, module: str) -> bool:
        """Whether `rank_pattern` has an entry for the given module."""
        return matching_key(self.rank_pattern, module) is not None

    def has_alpha_of_its_own(self, module: str) -> bool:
        """Whether `alpha_pattern` has an entry for the given module."""
        return matching_key(self.alpha_pattern, module) is not None

    def rank_of(self, module: str) -> int:
        """Returns the rank of the adapter on the given module."""
        key = matching_key(self.rank_pattern, module)
        return self.r if key is None else self.rank_pattern[key]

    def narrowest(self, module: str) -> int:
        # An explicit rank that does not fit a module is an error; `all-linear` must not skip the module silently.
        return 1 if self.has_rank_of_its_own(module) else self.r

    def alpha_of(self, module: str) -> float:
        """Returns lora_alpha for the given module."""
        key = matching_key(self.alpha_pattern, module)
        return self.lora_alpha if key is None else self.alpha_pattern[key]

    def scaling_of(self, module: str) -> float:
        """Returns the scaling factor s for the given module."""
        return self.scaling_with(self.rank_of(module), self.alpha_of(module))

    def scaling_with(self, r: int, alpha: float) -> float:
        """Returns the scaling factor s for a rank and a lora_alpha."""
        return alpha / self._divisor(r)

    def _divisor(self, r: int) -> float:
        return r**0.5 if self.use_rslora else r


def matching_key(patterns: Iterable[str], module: str) -> str | None:
    """Returns the first pattern that matches a module's name or the end of it; None if there is none.

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
