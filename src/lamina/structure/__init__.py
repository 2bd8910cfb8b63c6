"""Finds the parts of a loaded model: decoder layers, head, positions, and the modules that run on a text."""
