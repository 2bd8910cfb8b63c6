"""Random numbers drawn once more, for a dropout that a backward has to repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Randomness:
    """Remembers the state of a device's random numbers at marked places, and returns to them."""

    def __init__(self, device: torch.device, marks: int) -> None:
        """Without marks nothing is remembered, and `again` changes nothing."""
        self._device = device
        self._states: list[torch.Tensor | None] = [None] * marks

    def mark(self, place: int) -> None:
        """The first time: what is drawn next, can be drawn again."""
        if place < len(self._states) and self._states[place] is None:
            self._states[place] = self._read()

    @contextmanager
    def again(self, place: int) -> Iterator[None]:
        """Inside, random numbers are those that were drawn after `mark(place)`; afterwards as if none were drawn."""
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
