"""Fused decoder layers: the hot path of training, switched on for a block of code."""

from lamina.fusion.switch import FusionReport, fused_layers

__all__ = ["FusionReport", "fused_layers"]
