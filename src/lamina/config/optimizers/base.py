"""What the configuration must know about every optimizer.

Setting a field that the chosen optimizer does not read is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lamina.config.section import Section


@dataclass(frozen=True)
class OptimizerFacts:
    """What the configuration must know about an optimizer.

    Attributes:
        reads: Which of `SPECIAL_SETTINGS` it reads.
        layerwise: Whether it updates each parameter during the backward, so that all gradients never exist at once.
        blockwise: Whether it trains one decoder layer at a time.
        learning_rate_factor: Multiplies the method's default learning rate, which is tuned for AdamW.
        unpaged: For a paged optimizer, the optimizer with the same results whose state is not paged.
    """

    reads: frozenset[str]
    layerwise: bool = False
    blockwise: bool = False
    learning_rate_factor: float = 1.0
    unpaged: str | None = None


ADAM = frozenset({"adam_beta1", "adam_beta2", "adam_epsilon"})
GALORE = ADAM | {"galore"}
APOLLO = ADAM | {"apollo"}
BADAM = ADAM | {"badam"}

SPECIAL_SETTINGS = ("adam_beta1", "adam_beta2", "adam_epsilon", "galore", "apollo", "badam")
"""Fields of `train:` that only some optimizers read; null unless set."""


class GaloreConfig(Section):
    """`train.galore`: the subspace in which GaLore keeps the moments. The names are those of galore-torch."""

    rank: Annotated[int, Field(ge=1)] = 128
    """Rank of the subspace that each matrix's gradient is projected onto."""

    update_proj_gap: Annotated[int, Field(ge=1)] = 200
    """Steps between two singular value decompositions, each of which determines a new subspace."""

    scale: Annotated[float, Field(gt=0.0)] = 0.25
    """Scale of the projected update: the learning rate of projected matrices is `scale * learning_rate`."""

    proj_type: Literal["std", "reverse_std", "left", "right", "full"] = "std"
    """Which side is projected: `std` the shorter one, `reverse_std` the longer one, `left` the rows (out_features),
    `right` the columns (in_features), `full` both."""


class ApolloConfig(Section):
    """`train.apollo`: how APOLLO scales gradients. The names are those of apollo-torch."""

    rank: Annotated[int, Field(ge=1)] = 128
    """Rank of the projection of each matrix's gradient whose moments are kept; 1 for APOLLO-Mini."""

    update_proj_gap: Annotated[int, Field(ge=1)] = 200
    """Steps between two projections."""

    scale: Annotated[float, Field(gt=0.0)] = 1.0
    """The learning rate of projected matrices is `sqrt(scale) * learning_rate`; 128 for APOLLO-Mini."""

    scale_type: Literal["channel", "tensor"] = "channel"
    """What has a factor of its own: `channel`, each row or column along the longer side; `tensor`, the whole matrix, as
    in APOLLO-Mini."""

    proj: Literal["random", "svd"] = "random"
    """Where projections come from: `random` numbers, or the gradient's own singular vectors (`svd`)."""


class BadamConfig(Section):
    """`train.badam`: which decoder layer is trained when. The names are those of badam."""

    switch_interval: Annotated[int, Field(ge=1)] = 50
    """Steps of a layer's turn."""

    switch_mode: Literal["ascending", "descending", "random", "fixed"] = "ascending"
    """The layers' order: from the first, from the last, another one in each round, or always the same layer."""

    start_block: Annotated[int, Field(ge=0)] | None = None
    """The layer that is trained first, counted from 0; null means the first, or the last one if `descending`."""

    @model_validator(mode="after")
    def _check_start(self) -> BadamConfig:
        if self.switch_mode == "random" and self.start_block is not None:
            raise ValueError("start_block has no effect with switch_mode random; remove it, or set another switch_mode")
        return self
