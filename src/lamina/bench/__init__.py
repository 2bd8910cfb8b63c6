"""Measures lamina against its peers: the same rows, model, method and precision, each side in a process of its own."""
