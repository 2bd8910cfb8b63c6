"""Writes a model's weights one by one into shards of bounded size, so that only one shard is in memory at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from lamina import files

# A shard's tensors are in memory until it is written.
MAX_SHARD_BYTES = 500_000_000


class ShardWriter:
    """Writes `model.safetensors`, or numbered shards and their index, in the format of transformers.

    Args:
        folder: An existing folder to write to.
        max_bytes: Maximum size of a shard, unless a single tensor is larger.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_SHARD_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._written: list[list[str]] = []
        self._bytes = self._total = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Adds a tensor, which must not change until `close`."""
        if self._waiting and self._bytes + tensor.nbytes > self._max_bytes:
            self._write()
        self._waiting[name] = tensor.detach().cpu().contiguous()
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes

    @property
    def names(self) -> set[str]:
        """The names of the added tensors."""
        return {name for names in (*self._written, self._waiting) for name in names}

    def discard(self) -> None:
        """Deletes the shards that were written."""
        for number in range(1, len(self._written) + 1):
            (self._folder / _temporary(number)).unlink()

    def close(self) -> None:
        """Writes the last shard, and the index."""
        self._write()
        count = len(self._written)
        if count == 1:
            (self._folder / _temporary(1)).rename(self._folder / "model.safetensors")
            return
        weight_map = {}
        for number, names in enumerate(self._written, start=1):
            file = f"model-{number:05d}-of-{count:05d}.safetensors"
            (self._folder / _temporary(number)).rename(self._folder / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        files.write_json(self._folder / "model.safetensors.index.json", index)

    def _write(self) -> None:
        self._written.append(list(self._waiting))
        save_file(self._waiting, self._folder / _temporary(len(self._written)), metadata={"format": "pt"})
        self._waiting, self._bytes = {}, 0


def _temporary(number: int) -> str:
    return f"part-{number}.safetensors"
