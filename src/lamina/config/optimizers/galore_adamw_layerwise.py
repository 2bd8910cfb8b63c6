"""`optim: galore_adamw_layerwise`, layerwise GaLore: which settings it reads."""

from lamina.config.optimizers.base import GALORE, OptimizerFacts

FACTS = OptimizerFacts(GALORE, layerwise=True)
