"""`optim: paged_adamw_8bit`, AdamW with paged 8-bit moments: which settings it reads."""

from lamina.config.optimizers.base import ADAM, OptimizerFacts

FACTS = OptimizerFacts(ADAM, unpaged="adamw_8bit")
