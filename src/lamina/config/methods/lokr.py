"""`method: {type: lokr}`: the fields of LoKr. The mathematics is in `methods/lokr.py`."""

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
    learning_rate: ClassVar[float] = 1e-3
    so: ClassVar[Mapping[str, tuple[Any, ...]]] = {"init_weights": (True,)}

    type: Literal["lokr"] = "lokr"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of W2; from half of W2's larger side on, W2 is one full matrix instead of two factors."""

    alpha: Annotated[float, Field(gt=0.0)] = 8
    """The product is scaled by alpha / r."""

    decompose_both: bool = False
    """Make W1 of two factors as well, where r is below half of its larger side."""

    decompose_factor: int = -1
    """Side of W1, where it divides the layer's; -1 makes W1 and W2 as alike in size as can be."""

    target_modules: TargetModules = "all-linear"
    """`all-linear`, a list of names (each must match a module's last names), or one regular expression."""

    @field_validator("decompose_factor")
    @classmethod
    def _check_factor(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError(f"{value} is neither -1 nor a number of at least 1")
        return value

    @property
    def scaling(self) -> float:
        """The factor s."""
        return self.alpha / self.r


CONFIG = LoKrConfig
