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
            self._states[place] = self._module().get_rng_state()

    @contextmanager
    def again(self, place: int) -> Iterator[None]:
        """Inside, random numbers are those that were drawn after `mark(place)`; afterwards as if none were drawn."""
        state = self._states[place] if self._states else None
        if state is None:
            yield
            return
        module = self._module()
        before = module.get_rng_state()
        module.set_rng_state(state)
        try:
            yield
        finally:
            module.set_rng_state(before)

    def _module(self):
        return torch if self._device.type == "cpu" else torch.get_device_module(self._device)
