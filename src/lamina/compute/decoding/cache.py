"""The memory of keys and values, in blocks of tokens that sequences share or own."""

from __future__ import annotations

import torch

from lamina.compute.decoding.layouts import BLOCK_TOKENS


class CacheMemory:
    """Keys and values of every layer, by block. Memory is used as blocks are first written.

    Attributes:
        blocks: How many blocks there are.
        block_bytes: Bytes of one block, in all layers.
    """

    def __init__(self, layers: int, blocks: int, key_heads: int, head_size: int, dtype: torch.dtype) -> None:
        self.blocks = blocks
        self._storage = torch.empty(layers, 2, blocks, key_heads * BLOCK_TOKENS * head_size, dtype=dtype)
        self.block_bytes = self.bytes_of_block(layers, key_heads, head_size, dtype)

    @staticmethod
    def bytes_of_block(layers: int, key_heads: int, head_size: int, dtype: torch.dtype) -> int:
        """Computes the bytes of a block in all layers."""
        return layers * 2 * key_heads * BLOCK_TOKENS * head_size * dtype.itemsize

    def keys(self, layer: int) -> torch.Tensor:
        """The keys of a layer, (blocks, elements of a block)."""
        return self._storage[layer, 0]

    def values(self, layer: int) -> torch.Tensor:
        """The values of a layer, alike."""
        return self._storage[layer, 1]

    def copy(self, source: int, target: int) -> None:
        """Copies a block, in all layers."""
        self._storage[:, :, target] = self._storage[:, :, source]
