"""The configuration half of every optimizer, found by discovery.

An optimizer is two files with the same name: `config/optimizers/NAME.py` says which settings it reads, and
`optim/NAME.py` builds it. Other packages add optimizers with entry points (`lamina/plugins.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lamina import plugins
from lamina.config.optimizers.base import SPECIAL_SETTINGS, ApolloConfig, BadamConfig, GaloreConfig, OptimizerFacts

OPTIMIZERS: dict[str, OptimizerFacts] = plugins.config_halves("optimizers", "FACTS", OptimizerFacts)
"""The facts about each optimizer, by name (the value of `train.optim`)."""

if TYPE_CHECKING:
    OptimizerName = str
else:
    OptimizerName = Literal[tuple(OPTIMIZERS)]

__all__ = [
    "OPTIMIZERS",
    "SPECIAL_SETTINGS",
    "ApolloConfig",
    "BadamConfig",
    "GaloreConfig",
    "OptimizerFacts",
    "OptimizerName",
]
