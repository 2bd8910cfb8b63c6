"""Seeds torch's global random generators, for torch functions that accept no generator, and leaves all others alone.

`torch.manual_seed` would also reseed the generators of every other GPU, including those that the caller uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seeds the global generators of the CPU and of `device` inside the block, and restores their state afterwards."""
    with kept_generators(device):
        seed_generators(seed, device)
        yield


@contextmanager
def kept_generators(device: torch.device = _CPU) -> Iterator[None]:
    """Restores the global generators of the CPU and of `device` after the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(seed: int, device: torch.device = _CPU) -> None:
    """Seeds the global generators of the CPU and of `device`, as `torch.manual_seed` does, but no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
