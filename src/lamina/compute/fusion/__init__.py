"""Fused decoder layers: one autograd function computes a whole layer, inside a `with` block."""

from lamina.compute.fusion.inputs import model_inputs, predicting_logits, predicting_states, token_rows
from lamina.compute.fusion.layer import Recompute
from lamina.compute.fusion.switch import FusionReport, fast_path, fused_layers

__all__ = [
    "FusionReport",
    "Recompute",
    "fast_path",
    "fused_layers",
    "model_inputs",
    "predicting_logits",
    "predicting_states",
    "token_rows",
]
