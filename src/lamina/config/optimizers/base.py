"""What the configuration must know of every optimizer.

A setting that the chosen optimizer does not read is an error wherever it is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from lamina.config.section import Section


@dataclass(frozen=True)
class OptimizerFacts:
    """What the configuration must know of an optimizer.

    Attributes:
        reads: Those of `SPECIAL_SETTINGS` that it reads.
        layerwise: Whether it moves each tensor during the backward, so that gradients are never there all at once.
        learning_rate_factor: What the method's own learning rate, which is AdamW's, is multiplied by.
        unpaged: Of a paged optimizer, the one with the same numbers whose state stays where it is.
    """

    reads: frozenset[str]
    layerwise: bool = False
    learning_rate_factor: float = 1.0
    unpaged: str | None = None


ADAM = frozenset({"adam_beta1", "adam_beta2", "adam_epsilon"})
GALORE = ADAM | {"galore"}

SPECIAL_SETTINGS = ("adam_beta1", "adam_beta2", "adam_epsilon", "galore")
"""Fields of `train:` that some optimizers read and others do not; null in a configuration that leaves them alone."""


class GaloreConfig(Section):
    """`train.galore`: the subspace in which GaLore keeps the moments. The names are those of galore-torch."""

    rank: Annotated[int, Field(ge=1)] = 128
    """Rank of the subspace that each matrix's gradient is projected on."""

    update_proj_gap: Annotated[int, Field(ge=1)] = 200
    """Steps between two singular value decompositions, each of which gives a new subspace."""

    scale: Annotated[float, Field(gt=0.0)] = 0.25
    """Factor of the projected update: the learning rate of projected matrices is `scale * learning_rate`."""

    proj_type: Literal["std", "reverse_std", "left", "right", "full"] = "std"
    """Which side is projected: `std` the shorter one, `reverse_std` the longer one, `left` the rows (out_features),
    `right` the columns (in_features), `full` both."""
