"""Replays random numbers, so that a backward that recomputes a dropout draws the same mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Randomness:
    """Saves the state of a device's random number generator at marked places, and restores it."""

    def __init__(self, device: torch.device, marks: int) -> None:
        """Prepares for `marks` places. With 0 nothing is saved, and `replay` changes nothing."""
        self._device = device
        self._states: list[torch.Tensor | None] = [None] * marks

    def mark(self, place: int) -> None:
        """Saves the generator's state, the first time that it is called for a place."""
        if place < len(self._states) and self._states[place] is None:
            self._states[place] = self._read()

    @contextmanager
    def replay(self, place: int) -> Iterator[None]:
        """Draws the numbers that followed `mark(place)` again inside the block, and restores the state after it."""
        state = self._states[place] if self._states else None
        if state is None:
            yield
            return
        before = self._read()
        self._write(state)
        try:
            yield
        finally:
            self._write(before)

    def _read(self) -> torch.Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def _write(self, state: torch.Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)
