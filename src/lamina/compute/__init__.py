"""The hot path: runs a model with an adapter, for training and generation alike."""
