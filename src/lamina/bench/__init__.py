"""Measures lamina against its peers: same rows, model, method and precision, each side in its own process."""
