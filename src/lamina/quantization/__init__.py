"""The mathematics of storing weights in a few bits, and what rounding costs each layer."""
