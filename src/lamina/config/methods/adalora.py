"""`method: {type: adalora}`: the fields of AdaLoRA. The math is in `methods/adalora.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lamina.config.methods.base import MethodConfig
from lamina.config.targets import TargetModules

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(gt=0.0, lt=1.0)]


class AdaLoraConfig(MethodConfig):
    """Adaptive low-rank adaptation: W x + s B diag(E) A x, with ranks pruned where they matter least."""

    title: ClassVar[str] = "AdaLoRA"
    paper: ClassVar[str] = (
        "Zhang et al. 2023, AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, arXiv:2303.10512"
    )
    summary: ClassVar[str] = "LoRA in SVD form, which allocates a rank budget to the layers that need it most"
    learning_rate: ClassVar[float] = 1e-2
    so: ClassVar[Mapping[str, tuple[Any, ...]]] = {"bias": ("none",), "init_lora_weights": (True,)}
    absent: ClassVar[Mapping[str, str]] = {
        "r": "AdaLoRA has two ranks: init_r at the start, and target_r on average at the end",
        "use_dora": "AdaLoRA has no DoRA form; use `type: lora` for DoRA",
        "use_rslora": "AdaLoRA divides by init_r alone; set lora_alpha instead",
    }

    type: Literal["adalora"] = "adalora"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    target_r: PositiveInt = 8
    """Average rank of the layers at the end."""

    init_r: PositiveInt = 12
    """Rank of every layer at the start."""

    tinit: NonNegativeInt = 0
    """Steps before the first pruning."""

    tfinal: NonNegativeInt = 0
    """Steps after the last pruning, with the final ranks."""

    deltaT: PositiveInt = 1  # noqa: N815 - peft's name
    """Steps between two prunings."""

    beta1: Decay = 0.85
    """Decay of the moving average of a weight's sensitivity."""

    beta2: Decay = 0.85
    """Decay of the moving average of the sensitivity's uncertainty."""

    orth_reg_weight: Annotated[float, Field(ge=0.0)] = 0.5
    """Weight of the regularization that keeps the rows of A and the columns of B orthonormal; 0 disables it."""

    lora_alpha: Annotated[float, Field(gt=0.0)] = 32
    """The product is scaled by lora_alpha / init_r, even after ranks have been pruned."""

    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input."""

    target_modules: TargetModules = "all-linear"
    """`all-linear`, a list of names (each must match the end of a module's name), or one regular expression."""

    total_step: PositiveInt | None = None
    """Optimizer steps of the run. Null takes the number from the run; a given number must equal it."""

    rank_pattern: dict[str, list[bool]] | None = None
    """Which ranks each layer kept, in a finished adapter. Written by training; cannot be set in a configuration."""

    @model_validator(mode="after")
    def _check_schedule(self) -> AdaLoraConfig:
        wrong = []
        if self.target_r > self.init_r:
            wrong.append(
                f"target_r ({self.target_r}) is above init_r ({self.init_r}), but ranks can only decrease; lower "
                "target_r or raise init_r"
            )
        if self.total_step is not None and self.tinit + self.tfinal >= self.total_step:
            wrong.append(
                f"tinit ({self.tinit}) and tfinal ({self.tfinal}) leave no steps for pruning out of the "
                f"{self.total_step} steps of total_step; lower tinit or tfinal"
            )
        if wrong:
            raise ValueError(". ".join(wrong))
        return self

    def shortened(self, share: float) -> Self:
        less = {"tinit": int(self.tinit * share), "tfinal": int(self.tfinal * share), "total_step": None}
        return self.model_copy(update=less)

    def rank_of(self, module: str) -> int:
        return self.init_r

    @property
    def scaling(self) -> float:
        """The scaling factor s. The small term in the divisor is peft's, for identical results."""
        return self.lora_alpha / (self.init_r + 1e-5)


CONFIG = AdaLoraConfig
