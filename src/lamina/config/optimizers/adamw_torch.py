"""`optim: adamw_torch`, torch's own AdamW: which settings it reads."""

from lamina.config.optimizers.base import ADAM, OptimizerFacts

FACTS = OptimizerFacts(ADAM)
