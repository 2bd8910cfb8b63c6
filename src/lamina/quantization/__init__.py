"""Quantization algorithms (GPTQ, LoftQ), and the rounding error of each layer."""
