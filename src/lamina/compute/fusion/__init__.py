"""Fused decoder layers: a whole layer as one forward and one backward, switched on for a block of code."""

from lamina.compute.fusion.inputs import model_inputs
from lamina.compute.fusion.layer import Recompute
from lamina.compute.fusion.switch import FusionReport, fast_path, fused_layers

__all__ = ["FusionReport", "Recompute", "fast_path", "fused_layers", "model_inputs"]
