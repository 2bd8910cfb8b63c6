"""LoftQ's low-rank correction of a quantized weight, stored in a file next to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open


@dataclass(frozen=True)
class Correction:
    """Where the A and B of a weight that LoftQ split are stored.

    Attributes:
        path: The safetensors file.
        module: Name of the weight's module.
    """

    path: Path
    module: str

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Reads A (r, in_features) and B (out_features, r), float32, to the CPU."""
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(f"{self.module}.A"), file.get_tensor(f"{self.module}.B")
