"""`optim: lion`, Lion: which settings it reads."""

from lamina.config.optimizers.base import OptimizerFacts

# Its updates are signs, larger than AdamW's. The paper uses learning rates 3 to 10 times smaller.
FACTS = OptimizerFacts(frozenset({"adam_beta1", "adam_beta2"}), learning_rate_factor=0.1)
