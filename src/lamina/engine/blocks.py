"""Which blocks of the cache are whose: owned, shared by sequences that begin alike, or kept in case one comes back."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

Key = bytes


class Blocks:
    """Counts references to blocks, and finds blocks again by what they hold.

    A block is free, in use (with a count), or kept: full, unused, and found by its key until its memory is needed; the
    one that was used the longest ago goes first.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._uses = [0] * count
        self._key_of: dict[int, Key] = {}
        self._by_key: dict[Key, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be taken."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Blocks that sequences hold."""
        return self.count - self.available

    def take(self) -> int:
        """Takes a block for one sequence.

        Raises:
            IndexError: There is none.
        """
        if self._free:
            block = self._free.pop()
        elif self._kept:
            block, _ = self._kept.popitem(last=False)
            self._forget(block)
        else:
            raise IndexError("no block is available")
        self._uses[block] = 1
        return block

    def share(self, block: int) -> None:
        """Counts one more use of a block."""
        if self._uses[block] == 0:
            del self._kept[block]
        self._uses[block] += 1

    def give_back(self, block: int) -> None:
        """Counts one use less. A full block is kept; another is free again."""
        assert self._uses[block] > 0
        self._uses[block] -= 1
        if self._uses[block] == 0:
            if block in self._key_of:
                self._kept[block] = None
            else:
                self._free.append(block)

    def register(self, block: int, key: Key) -> None:
        """Says what a full block holds, so that others find it. The first block of a key stays the one."""
        if key not in self._by_key and block not in self._key_of:
            self._by_key[key] = block
            self._key_of[block] = key

    def find(self, keys: Sequence[Key]) -> list[int]:
        """Finds the blocks of the longest beginning of `keys`, without counting a use."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def forget_kept(self) -> None:
        """Forgets all that is kept: what it was computed with is no longer there."""
        while self._kept:
            block, _ = self._kept.popitem()
            self._forget(block)
            self._free.append(block)

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block)
        del self._by_key[key]


def first_key(digest: str | None, salt: str) -> Key:
    """The key before a sequence's first block. An adapter is known by its digest, never by its name."""
    return hashlib.blake2b(f"{digest or ''}\0{salt}".encode(), digest_size=16).digest()


def next_key(before: Key, tokens: Sequence[int]) -> Key:
    """The key of a block that holds `tokens`, after the block with the key `before`."""
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()
