"""Exports: merged models and quantized base models."""
