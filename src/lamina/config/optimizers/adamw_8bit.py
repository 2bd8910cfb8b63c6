"""`optim: adamw_8bit`, AdamW with moments in 8 bits: which settings it reads."""

from lamina.config.optimizers.base import ADAM, OptimizerFacts

FACTS = OptimizerFacts(ADAM)
