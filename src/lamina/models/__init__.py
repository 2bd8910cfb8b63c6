"""Finds, loads and fingerprints base models."""
