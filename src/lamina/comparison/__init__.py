"""Compares many candidates under one budget."""
