"""`optim: apollo_adamw_layerwise`, layerwise APOLLO: which settings it reads."""

from lamina.config.optimizers.base import APOLLO, OptimizerFacts

FACTS = OptimizerFacts(APOLLO, layerwise=True)
