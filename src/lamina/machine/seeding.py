"""Seeds torch's global random generators, for torch functions that accept no generator, and leaves all others alone.

`torch.manual_seed` would also reseed the generators of every other GPU, including those that the caller uses.
"""

from __future__ import annotations

import hashlib
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


def seed_of(seed: int, *places: int) -> int:
    """Derives the seed of a part of a run, such as a step's micro-batch, so that no two parts share random numbers.

    >>> seed_of(0, 1, 2) == seed_of(0, 1, 2), seed_of(0, 1, 2) == seed_of(0, 2, 1)
    (True, False)
    """
    text = " ".join(map(str, (seed, *places)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_generators(seed: int, device: torch.device = _CPU) -> None:
    """Seeds the global generators of the CPU and of `device`, as `torch.manual_seed` does, but no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
