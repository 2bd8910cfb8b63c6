"""Loads base models in 4 or 8 bits."""
