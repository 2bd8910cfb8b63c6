"""The training loop: setup, plan, steps, evaluations, checkpoints, exact resume."""
