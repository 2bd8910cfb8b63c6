"""`optim: galore_adamw_8bit`, AdamW with 8-bit moments on GaLore's subspace: which settings it reads."""

from lamina.config.optimizers.base import GALORE, OptimizerFacts

FACTS = OptimizerFacts(GALORE)
