"""The contract of a runner: computes logits for the new tokens of sequences, whoever schedules them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Protocol

import torch

from lamina.engine.blocks import Blocks
from lamina.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Positions of a sequence that are computed in one step.

    Attributes:
        sequence: Whose.
        begin: The first position; all before it are in the cache.
        count: How many.
    """

    sequence: Sequence
    begin: int
    count: int

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.begin + self.count

    @property
    def is_last(self) -> bool:
        """Whether a token follows."""
        return self.end == self.sequence.positions

    def wanted(self) -> list[int]:
        """Positions whose logits are wanted, ascending."""
        sequence = self.sequence
        virtual = sequence.voice.virtual_tokens
        if sequence.wants is not None:
            return [place + virtual for place in sequence.wants if self.begin <= place + virtual < self.end]
        if sequence.sampling.prompt_logprobs is not None and self.begin < virtual + sequence.prompt_tokens:
            return list(range(max(self.begin, virtual), self.end))
        return [self.end - 1] if self.is_last else []


class Runner(Protocol):
    """Computes logits."""

    @property
    def blocks(self) -> Blocks | None:
        """Who holds which block of the cache; None for a runner that keeps a cache of its own for each sequence."""
        ...

    @property
    def block_size(self) -> int:
        """Positions in a block."""
        ...

    @property
    def prompt_chunk(self) -> tuple[int, int]:
        """Positions of prompts that a step takes at most: beside answers, and alone."""
        ...

    @property
    def most_running(self) -> int:
        """Sequences that may be on their way at once."""
        ...

    def begin(self, sequence: Sequence) -> None:
        """Prepares a sequence whose blocks were just taken: what is before its first token."""
        ...

    def run(self, chunks: Many[Chunk]) -> Many[torch.Tensor | Exception]:
        """Computes chunks of different sequences.

        Where it raises, nothing was computed, and each chunk may be tried again by itself.

        Returns:
            For each chunk, the logits of its wanted positions, (wanted, vocabulary), float32; or what ends its sequence
            alone.
        """
        ...

    def forget(self, sequence: Sequence) -> None:
        """Drops what is kept for a sequence beside its blocks."""
        ...
