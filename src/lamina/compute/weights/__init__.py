"""Storage of frozen weights (dense, packed in 4 or 8 bits, memory-mapped from a file), behind one interface."""

from __future__ import annotations

from torch import nn

from lamina.compute.weights.dense import DenseLinear
from lamina.compute.weights.experts import PackedStack, count_weights
from lamina.compute.weights.frozen import FrozenLinear
from lamina.compute.weights.packed import PackedFrozen, PackedLinear, unpack

STORAGES: tuple[type[FrozenLinear], ...] = (DenseLinear, PackedFrozen)


def freeze_linear(module: nn.Module) -> FrozenLinear | None:
    """Wraps a linear module in its `FrozenLinear`; returns None if no storage supports its class."""
    for storage in STORAGES:
        if storage.stores(module):
            return storage(module)
    return None


__all__ = [
    "STORAGES",
    "DenseLinear",
    "FrozenLinear",
    "PackedFrozen",
    "PackedLinear",
    "PackedStack",
    "count_weights",
    "freeze_linear",
    "unpack",
]
