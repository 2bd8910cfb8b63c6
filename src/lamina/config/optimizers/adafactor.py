"""`optim: adafactor`, Adafactor: which settings it reads."""

from lamina.config.optimizers.base import OptimizerFacts

FACTS = OptimizerFacts(frozenset())
