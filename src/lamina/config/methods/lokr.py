"""`method: {type: lokr}`: the fields of LoKr. The math is in `methods/lokr.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from lamina.config.methods.base import MethodConfig
from lamina.config.targets import TargetModules


class LoKrConfig(MethodConfig):
    """Low-rank Kronecker product: W x + s (W1 (x) W2) x."""

    title: ClassVar[str] = "LoKr"
    paper: ClassVar[str] = (
        "Yeh et al. 2023, Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation, "
        "arXiv:2309.14859"
    )
    summary: ClassVar[str] = "the Kronecker product of a small and a low-rank matrix: full rank for few parameters"
    learning_rate: ClassVar[float] = 1e-2
    so: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "init_weights": (True,),
        "module_dropout": (0, 0.0),
        "rank_dropout": (0, 0.0),
        "rank_dropout_scale": (False,),
        "use_effective_conv2d": (False,),
    }

    type: Literal["lokr"] = "lokr"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of W2. If it is at least half of W2's larger side, W2 is one full matrix instead of two factors."""

    alpha: Annotated[float, Field(gt=0.0)] = 8
    """The product is scaled by alpha / r."""

    decompose_both: bool = False
    """Factorize W1 as well, if r is below half of its larger side."""

    decompose_factor: int = -1
    """Side of W1, if it divides the layer's side; -1 makes W1 and W2 as close in size as possible."""

    target_modules: TargetModules = "all-linear"
    """`all-linear`, a list of names (each must match the end of a module's name), or one regular expression."""

    @field_validator("decompose_factor")
    @classmethod
    def _check_factor(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError(f"{value} is neither -1 nor at least 1")
        return value

    @property
    def scaling(self) -> float:
        """The scaling factor s."""
        return self.alpha / self.r


CONFIG = LoKrConfig
