"""`optim: galore_adamw_8bit_layerwise`, layerwise GaLore with 8-bit moments: which settings it reads."""

from lamina.config.optimizers.base import GALORE, OptimizerFacts

FACTS = OptimizerFacts(GALORE, layerwise=True)
