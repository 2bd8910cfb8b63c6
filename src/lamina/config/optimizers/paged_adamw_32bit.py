"""`optim: paged_adamw_32bit`, AdamW with paged moments: which settings it reads."""

from lamina.config.optimizers.base import ADAM, OptimizerFacts

FACTS = OptimizerFacts(ADAM, unpaged="adamw_torch")
