"""What makes up for the rounding of a quantized weight: a low-rank product that lies in a file beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open


@dataclass(frozen=True)
class Correction:
    """Where the A and B lie that belong to a split weight.

    Attributes:
        path: A safetensors file.
        module: The weight's module.
    """

    path: Path
    module: str

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in_features) and B (out_features, r), float32, on the CPU."""
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(f"{self.module}.A"), file.get_tensor(f"{self.module}.B")
