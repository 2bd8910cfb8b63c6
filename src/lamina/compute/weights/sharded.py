"""Frozen weights that are divided over processes, a decoder layer at a time: torch's FSDP2.

A layer's weights are whole only while it runs: FSDP2 gathers them before its forward and its backward, and frees them
afterwards. What is read at another time asks for `whole`. A sharded weight keeps its place in its module (its memory
comes and goes), so it cannot move into the matrix of a `LinearGroup`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from torch import nn

_SHARDED: WeakSet[nn.Module] = WeakSet()
_LAYERS: WeakSet[nn.Module] = WeakSet()


def mark_sharded(layer: nn.Module, modules: list[nn.Module]) -> None:
    """Notes that a layer was given to FSDP2, and which of its modules have sharded weights."""
    _LAYERS.add(layer)
    _SHARDED.update(modules)


def is_sharded(module: nn.Module) -> bool:
    """Returns whether a module's weight is divided over processes."""
    return module in _SHARDED


@contextlib.contextmanager
def whole(layer: Any) -> Iterator[None]:
    """Gathers a layer's weights for the block, if they are sharded; all processes must do so."""
    if layer not in _LAYERS:
        yield
        return
    layer.unshard()
    try:
        yield
    finally:
        layer.reshard()
