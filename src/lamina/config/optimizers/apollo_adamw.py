"""`optim: apollo_adamw`, gradients scaled as AdamW would a projection of them: which settings it reads."""

from lamina.config.optimizers.base import APOLLO, OptimizerFacts

FACTS = OptimizerFacts(APOLLO)
