"""Dropout of a detour's input, by a mask that the backward uses again."""

from __future__ import annotations

import torch

# Sixteen random bits decide about an element: on the CPU torch draws 64 at a time as fast as it draws one for
# `bernoulli_`, and a step with dropout on every layer draws some hundred millions.
_STEPS = 2**16


def keep_mask(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """Which elements of x stay, bool, drawn by torch's generator of x's device.

    Args:
        x: Any shape.
        dropout: Probability of dropping an element, rounded to a multiple of 2^-16.
    """
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    draws = words.view(torch.int16)[: x.numel()].view(x.shape)
    return draws >= min(round(dropout * _STEPS), _STEPS - 1) - _STEPS // 2


def drop(x: torch.Tensor, mask: torch.Tensor, dropout: float) -> torch.Tensor:
    """x where it stays, divided by the probability of staying, and 0 elsewhere."""
    return x * mask * (1.0 / (1.0 - dropout))
