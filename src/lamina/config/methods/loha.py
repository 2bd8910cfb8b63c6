"""`method: {type: loha}`: the fields of LoHa. The math is in `methods/loha.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lamina.config.methods.base import MethodConfig
from lamina.config.targets import TargetModules


class LoHaConfig(MethodConfig):
    """Low-rank Hadamard product: W x + s ((W1a W1b) * (W2a W2b)) x, of rank up to r^2."""

    title: ClassVar[str] = "LoHa"
    paper: ClassVar[str] = (
        "Hyeon-Woo et al. 2021, FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning, "
        "arXiv:2108.06098"
    )
    summary: ClassVar[str] = "the elementwise product of two low-rank products: rank r^2 for the parameters of rank 2r"
    learning_rate: ClassVar[float] = 1e-2
    so: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "init_weights": (True,),
        "module_dropout": (0, 0.0),
        "rank_dropout": (0, 0.0),
        "use_effective_conv2d": (False,),
    }

    type: Literal["loha"] = "loha"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    r: Annotated[int, Field(ge=1)] = 8
    """Rank of each of the two products; their elementwise product has a rank of up to r^2."""

    alpha: Annotated[float, Field(gt=0.0)] = 8
    """The product is scaled by alpha / r."""

    target_modules: TargetModules = "all-linear"
    """`all-linear`, a list of names (each must match the end of a module's name), or one regular expression."""

    def rank_of(self, module: str) -> int:
        return self.r

    @property
    def scaling(self) -> float:
        """The scaling factor s."""
        return self.alpha / self.r


CONFIG = LoHaConfig
