"""The hot path, which training and generation share: how a model with an adapter is computed."""
