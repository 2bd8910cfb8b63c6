"""`optim: badam`, AdamW on one decoder layer after the other: which settings it reads."""

from lamina.config.optimizers.base import BADAM, OptimizerFacts

FACTS = OptimizerFacts(BADAM, blockwise=True)
