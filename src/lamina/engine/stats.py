"""How an engine is doing, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.engine.core import Counters


@dataclass(frozen=True)
class EngineStats:
    """How an engine is doing.

    Attributes:
        running: Requests that are being answered.
        waiting: Requests that wait to be.
        cache_blocks: Blocks of the cache; 0 where the kernels do not run the base.
        used_blocks: Those that requests hold.
        counters: What was done since the start.
    """

    running: int
    waiting: int
    cache_blocks: int
    used_blocks: int
    counters: Counters
