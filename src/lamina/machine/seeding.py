"""Seeds torch's global generators where its functions draw from no other, and touches none but those.

`torch.manual_seed` would reseed the generators of every GPU of the process, the caller's as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seeds the global generators of the CPU and of `device`; at the end both are as they were."""
    with kept_generators(device):
        seed_generators(seed, device)
        yield


@contextmanager
def kept_generators(device: torch.device = _CPU) -> Iterator[None]:
    """Lets the global generators of the CPU and of `device` be at the end as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def seed_generators(seed: int, device: torch.device = _CPU) -> None:
    """Seeds the global generators of the CPU and of `device`, as `torch.manual_seed` does, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
