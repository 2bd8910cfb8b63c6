"""Adafactor: stores the squared gradient of a matrix as one value per row and one per column, and no mean.

Shazeer and Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv:1804.04235, in
transformers' implementation and with the settings of transformers' Trainer: the learning rate is not scaled by the
parameter's size, so that it is comparable to AdamW's. With scaling, a B that starts at zero would hardly be updated.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.optimization import Adafactor

from lamina.config import TrainConfig


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Builds Adafactor with a clipping threshold of 1, and a decay of the squares of 1 - t^-0.8."""
    return Adafactor(groups, lr=config.peak_learning_rate, scale_parameter=False, relative_step=False)
