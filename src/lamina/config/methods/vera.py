"""`method: {type: vera}`: the fields of VeRA. The math is in `methods/vera.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lamina.config.methods.base import MethodConfig
from lamina.config.targets import TargetModules


class VeraConfig(MethodConfig):
    """Vector-based random matrix adaptation: W x + b * (B (d * (A x))) with random, frozen, shared A and B."""

    title: ClassVar[str] = "VeRA"
    paper: ClassVar[str] = "Kopiczko et al. 2023, VeRA: Vector-based Random Matrix Adaptation, arXiv:2310.11454"
    summary: ClassVar[str] = "two trained vectors per layer, around one pair of random matrices shared by all layers"
    learning_rate: ClassVar[float] = 1e-2
    so: ClassVar[Mapping[str, tuple[Any, ...]]] = {"bias": ("none",), "init_weights": (True,)}

    type: Literal["vera"] = "vera"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Method name."""

    r: Annotated[int, Field(ge=1)] = 256
    """Rank of the shared matrices, and the length of d."""

    d_initial: float = 0.1
    """Initial value of d."""

    vera_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the adapter's input."""

    projection_prng_key: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the shared matrices."""

    save_projection: bool = True
    """Save the shared matrices with the adapter instead of drawing them again from their seed at every load."""

    target_modules: TargetModules = "all-linear"
    """`all-linear`, a list of names (each must match the end of a module's name), or one regular expression."""


CONFIG = VeraConfig
