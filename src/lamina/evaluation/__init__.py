"""Measures how good an adapter is, beside the bare base model."""
