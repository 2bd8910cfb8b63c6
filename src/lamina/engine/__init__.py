"""Generates text with a model and its adapter."""
