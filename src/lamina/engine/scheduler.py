"""Decides what each step computes: answers under way first, then prompts in chunks, then who may join."""

from __future__ import annotations

from collections import deque

from lamina.engine.blocks import Key
from lamina.engine.runner import Chunk, Runner
from lamina.engine.sequence import Sequence

# Positions of a prompt all of whose logits are wanted that a step takes: their logits are held at once.
_WITH_LOGITS = 64


class Scheduler:
    """The sequences of one runner.

    Sequences join in the order in which they came, as soon as there are blocks for what is known of them. One that runs
    out of blocks has those that joined last put back, to be computed again later; nothing that was answered is lost.

    Attributes:
        waiting: Sequences that have not joined.
        running: Those that have, in the order in which they joined.
        preemptions: How often one was put back.
    """

    def __init__(self, runner: Runner, shares_prefixes: bool = True) -> None:
        self._runner, self._shares = runner, shares_prefixes
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._coming: dict[Key, Sequence] = {}

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait to join."""
        self.waiting.append(sequence)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.waiting and not self.running

    def plan(self) -> list[Chunk]:
        """What the next step computes; empty for nothing."""
        for sequence in [sequence for sequence in self.running if sequence.is_over]:
            self.leave(sequence)
        self.waiting = deque(sequence for sequence in self.waiting if not sequence.is_over)
        chunks: list[Chunk] = []
        answering = any(
            sequence.positions - sequence.computed == 1 and sequence.wants is None for sequence in self.running
        )
        room = self._runner.prompt_chunk[0 if answering else 1]
        for sequence in list(self.running):
            if sequence not in self.running:  # it was put back
                continue
            count = sequence.positions - sequence.computed
            if count > 1:
                count = sequence.most_at_once(min(count, room), _WITH_LOGITS)
            if count and self._make_room(sequence, sequence.computed + count):
                chunks.append(Chunk(sequence, sequence.computed, count))
                room -= count if count > 1 else 0
        chunks = [chunk for chunk in chunks if chunk.sequence in self.running]
        self._admit(chunks, room)
        return chunks

    def computed(self, chunk: Chunk) -> None:
        """Notes that a chunk is in the cache, and what its full blocks hold."""
        sequence = chunk.sequence
        sequence.computed = chunk.end
        blocks = self._runner.blocks
        if blocks is None:
            return
        size = self._runner.block_size
        full = chunk.end // size
        keys = sequence.keys(full, size)
        for number in range(chunk.begin // size, full):
            if self._shares:
                blocks.register(sequence.blocks[number], keys[number])
            self._coming.pop(keys[number], None)

    def leave(self, sequence: Sequence) -> None:
        """Takes a sequence out, and gives its blocks back."""
        if sequence in self.running:
            self.running.remove(sequence)
        self._release(sequence)

    def forget_kept(self) -> None:
        """Forgets the prefixes of sequences that are over."""
        if self._runner.blocks is not None:
            self._runner.blocks.forget_kept()

    def _admit(self, chunks: list[Chunk], room: int) -> None:
        later: list[Sequence] = []
        while self.waiting and room > 0 and len(self.running) < self._runner.most_running:
            sequence = self.waiting.popleft()
            if self._is_coming(sequence):
                later.append(sequence)  # another computes the same beginning: wait for it, and let others pass
                continue
            if not self._join(sequence):
                self.waiting.appendleft(sequence)
                break
            count = sequence.positions - sequence.computed
            if self._runner.blocks is not None:
                count = sequence.most_at_once(min(count, room), _WITH_LOGITS)
            chunks.append(Chunk(sequence, sequence.computed, count))
            room -= count
        self.waiting.extendleft(reversed(later))

    def _is_coming(self, sequence: Sequence) -> bool:
        blocks, size = self._runner.blocks, self._runner.block_size
        if blocks is None or not self._shares or not sequence.shareable or not self._coming:
            return False
        keys = sequence.keys(sequence.shareable // size, size)
        found = len(blocks.find(keys))
        other = self._coming.get(keys[found]) if found < len(keys) else None
        return other is not None and other is not sequence and other in self.running

    def _join(self, sequence: Sequence) -> bool:
        """Takes blocks for all that is known of a sequence, those that hold its beginning already among them."""
        blocks, size = self._runner.blocks, self._runner.block_size
        sequence.computed = 0
        if blocks is not None:
            found: list[int] = []
            keys = sequence.keys(sequence.shareable // size, size)
            if self._shares:
                found = blocks.find(keys)
                if len(found) * size < sequence.voice.virtual_tokens:
                    found = []
            for block in found:
                blocks.share(block)
            needed = -(-sequence.positions // size) - len(found)
            # One more for each that is running, so that what joins is not put back at once.
            if needed + (len(self.running) if self.running else 0) > blocks.available:
                for block in found:
                    blocks.give_back(block)
                return False
            sequence.blocks = found + [blocks.take() for _ in range(needed)]
            sequence.computed = len(found) * size
            sequence.cached = max(0, sequence.computed - sequence.voice.virtual_tokens)
            for key in keys[len(found) :]:
                self._coming.setdefault(key, sequence)
        self.running.append(sequence)
        self._runner.begin(sequence)
        return True

    def _make_room(self, sequence: Sequence, positions: int) -> bool:
        """Takes the blocks that a running sequence needs, from those that joined after it if need be."""
        blocks = self._runner.blocks
        while blocks is not None and len(sequence.blocks) * self._runner.block_size < positions:
            if blocks.available:
                sequence.blocks.append(blocks.take())
                continue
            victim = self.running[-1]
            self._put_back(victim)
            if victim is sequence:
                return False
        return True

    def _put_back(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.restart()
        self.preemptions += 1
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        blocks = self._runner.blocks
        if blocks is not None:
            for block in sequence.blocks:
                blocks.give_back(block)
            sequence.blocks = []
            for key in [key for key, owner in self._coming.items() if owner is sequence]:
                del self._coming[key]
        self._runner.forget(sequence)
