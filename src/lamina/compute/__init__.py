"""The hot path: kernels, weights and fused layers that run a model with an adapter, in training and generation."""
