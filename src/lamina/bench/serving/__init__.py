"""Measures answering beside peers: one load for every side, and the limit that the machine sets to a step."""
