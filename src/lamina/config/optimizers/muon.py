"""`optim: muon`, Muon: which settings it reads."""

from lamina.config.optimizers.base import ADAM, OptimizerFacts

FACTS = OptimizerFacts(ADAM)
