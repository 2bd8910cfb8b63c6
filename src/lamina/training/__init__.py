"""The training loop: steps, evaluations, checkpoints, exact resume."""
