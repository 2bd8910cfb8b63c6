"""GaLore's AdamW with 8-bit moments, which updates each tensor during the backward."""

from __future__ import annotations

from typing import Any

import torch

from lamina.config import TrainConfig
from lamina.optim._bitsandbytes import BnbMoments, bitsandbytes
from lamina.optim._galore import LayerwiseGaloreAdamW


def build(config: TrainConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """
    Raises:
        ConfigError: No matrix would be projected, or bitsandbytes is not installed.
    """
    return LayerwiseGaloreAdamW(config, groups, BnbMoments(bitsandbytes(config.optim), bits=8))
