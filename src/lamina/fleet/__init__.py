"""Fleets: many runs, each a process of its own, here, on a Ray cluster or on Slurm; what is cut is resumed."""
