"""`optim: signs`: which settings `signs.py` reads."""

from lamina.config.optimizers.base import OptimizerFacts

FACTS = OptimizerFacts(reads=frozenset(), learning_rate_factor=0.1)
