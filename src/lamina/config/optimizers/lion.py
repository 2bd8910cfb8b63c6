"""`optim: lion`, Lion: which settings it reads."""

from lamina.config.optimizers.base import OptimizerFacts

# Its steps are signs, larger than AdamW's; the paper takes 3 to 10 times smaller learning rates.
FACTS = OptimizerFacts(frozenset({"adam_beta1", "adam_beta2"}), learning_rate_factor=0.1)
