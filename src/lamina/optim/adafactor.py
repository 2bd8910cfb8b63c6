"""Adafactor: the square of a matrix's gradient kept as one number a row and one a column, and no mean.

Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv:1804.04235, in
transformers' implementation and with the settings of transformers' trainer: the configured learning rate as it is, not
scaled by the tensor's size, so that it means about what it means for AdamW. Scaled, a B that begins at zero would
hardly move.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.optimization import Adafactor

from lamina.config import TrainConfig


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adafactor with a clipping threshold of 1 and its square's decay of 1 - t^-0.8."""
    return Adafactor(groups, lr=config.peak_learning_rate, scale_parameter=False, relative_step=False)
