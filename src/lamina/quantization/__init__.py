"""The mathematics of rounding weights to a few bits."""
