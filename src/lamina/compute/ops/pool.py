"""Large buffers that are kept from step to step, or from layer to layer.

What malloc takes back and gives out anew, it scatters: small tensors settle in the holes that large ones leave, the
next step's large ones no longer fit, and the process grows by a quarter within a few steps
(docs/decisions/0021-memory-of-a-step.md).
"""

from __future__ import annotations

import torch


class Pool:
    """Buffers of one shape, which are those of the last shape that was asked for."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._shape: tuple[int, int] | None = None

    def take(self, like: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """A buffer (rows, width) of the same dtype and device as `like`, with anything in it."""
        if self._shape != (rows, width):
            self._free.clear()
            self._shape = (rows, width)
        return self._free.pop() if self._free else like.new_empty(rows, width)

    def give(self, buffer: torch.Tensor) -> None:
        """Takes back what `take` gave and nobody reads any more. What is never given back, is freed like any tensor."""
        if buffer.shape == self._shape:
            self._free.append(buffer)


class Scratch:
    """One buffer for each shape, whose content lasts until the next one asks for that shape."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    def buffer(self, like: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """(rows, width) of the same dtype and device as `like`, with anything in it."""
        key = (rows, width, like.dtype)
        if key not in self._buffers:
            self._buffers[key] = like.new_empty(rows, width)
        return self._buffers[key]
