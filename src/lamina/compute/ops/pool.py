"""Large buffers that are reused from step to step, or from layer to layer.

They avoid fragmentation: where large tensors are freed, malloc places small ones in the holes, so the next step's large
tensors no longer fit, and the process grows by a quarter within a few steps (docs/decisions/0021-memory-of-a-step.md).
"""

from __future__ import annotations

import torch


class Pool:
    """Free buffers of one shape: the last shape that was asked for."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._shape: tuple[int, int] | None = None

    def take(self, like: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """Takes an uninitialized buffer (rows, width) of the same dtype and device as `like`."""
        if self._shape != (rows, width):
            self._free.clear()
            self._shape = (rows, width)
        return self._free.pop() if self._free else like.new_empty(rows, width)

    def give(self, buffer: torch.Tensor) -> None:
        """Gives back a buffer from `take` that is no longer read. A buffer that is not given back is freed as usual."""
        if buffer.shape == self._shape:
            self._free.append(buffer)


class Scratch:
    """One buffer for each shape. Its content is valid until the next call of `buffer` with the same shape."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    def buffer(self, like: torch.Tensor, rows: int, width: int) -> torch.Tensor:
        """Gets the buffer (rows, width) of the same dtype and device as `like`; its content is undefined."""
        key = (rows, width, like.dtype)
        if key not in self._buffers:
            self._buffers[key] = like.new_empty(rows, width)
        return self._buffers[key]
