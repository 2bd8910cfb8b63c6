"""`optim: galore_adamw`, AdamW on GaLore's subspace: which settings it reads."""

from lamina.config.optimizers.base import GALORE, OptimizerFacts

FACTS = OptimizerFacts(GALORE)
