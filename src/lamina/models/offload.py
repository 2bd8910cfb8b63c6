"""Keeps frozen layers on disk, for a base larger than memory.

A safetensors file is memory-mapped: its pages are loaded when they are accessed. Here each decoder layer's pages are
prefetched while the layer before it runs, in the forward and in the backward, and evicted after the layer has run, so
that two layers of the base are in memory at a time. Weights are never changed, so nothing is written back.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lamina.compute.weights.packed import PackedLinear
from lamina.errors import ConfigError, Problem
from lamina.machine.pages import mapped_spans, page_in, page_out
from lamina.structure.layers import decoder_layers

# The share of free memory that a base may take before it stays on disk; the rest is for activations and everything
# else.
_SHARE_FOR_BASE = 0.7

# Smaller tensors are not worth a system call each.
_SMALLEST = 16 * 1024

# Bytes that are read to measure the disk's rate, and bytes per read.
_SAMPLE = 256 * 2**20
_CHUNK = 8 * 2**20

Span = tuple[int, int]


class MappedLinear(PackedLinear):
    """A linear layer whose weight stays memory-mapped from its file.

    Attributes:
        packed: The weight as in the file, (out_features, in_features), or transposed for `Conv1D`.
    """

    def __init__(self, module: nn.Linear | Conv1D) -> None:
        weight = module.weight.detach()
        self._transposed = isinstance(module, Conv1D)
        inputs, outputs = weight.shape if self._transposed else weight.shape[::-1]
        super().__init__(inputs, outputs, module.bias, weight.dtype)
        self.register_buffer("packed", weight)

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        return (self.packed.T if self._transposed else self.packed).to(dtype or self.dtype)

    def dequantize_into(self, out: torch.Tensor) -> None:
        out.copy_(self.dense(out.dtype))


@dataclass(frozen=True)
class Offload:
    """What stays on disk.

    Attributes:
        layer_bytes: Bytes of weights that stay in their files, for each decoder layer.
        bytes_per_second: The measured rate at which this machine reads them.
    """

    layer_bytes: list[int]
    bytes_per_second: float

    def line(self) -> str:
        """Formats a sentence for the run's plan. Every layer is read once in the forward and once in the backward."""
        total = sum(self.layer_bytes)
        seconds = 2 * total / self.bytes_per_second
        return (
            f"{total / 2**30:.2f} GiB of frozen layers stay on disk (see `offload`). A micro-batch reads them twice: "
            f"{seconds:.1f} s at {self.bytes_per_second / 2**20:,.0f} MiB/s, while it computes."
        )


def wants_offload(setting: bool | str, files: Sequence[Path], device: torch.device) -> bool:
    """Resolves `offload`: with `auto`, a base that does not fit in memory stays on disk.

    Raises:
        ConfigError: `offload: true` on a system that does not support it.
    """
    possible = device.type == "cpu" and sys.platform.startswith("linux")
    if setting is True and not possible:
        message = f"it maps files into the memory of a Linux machine, and training runs on {device} ({sys.platform})."
        raise ConfigError(Problem("offload", message, "set it to false or auto"))
    if setting != "auto":
        return bool(setting)
    size = sum(path.stat().st_size for path in files)
    return possible and size > _SHARE_FOR_BASE * psutil.virtual_memory().available


def leave_on_disk(model: PreTrainedModel, files: Sequence[Path]) -> Offload:
    """Makes every decoder layer's weights be prefetched and evicted as the model runs.

    Args:
        model: The model, loaded from `files`, on the CPU.
        files: The model's safetensors files.
    """
    layers = decoder_layers(model)
    _map_again(model, layers, files)
    for layer in layers:
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear | Conv1D) and type(module) in (nn.Linear, Conv1D):
                layer.set_submodule(name, MappedLinear(module))
    pager = _Pager(layers, mapped_spans(files))
    for place, layer in enumerate(layers):
        layer.register_forward_pre_hook(pager.hook(place), with_kwargs=True)
        pager.leave(place)  # evicts what loading has read
    return Offload([pager.size(place) for place in range(len(layers))], _reading_rate(files))


class _Pager:
    """Prefetches and evicts the pages of each layer."""

    def __init__(self, layers: Sequence[nn.Module], mapped: Sequence[Span]) -> None:
        self._spans = [_spans(layer, mapped) for layer in layers]

    def size(self, place: int) -> int:
        return sum(end - start for start, end in self._spans[place])

    def hook(self, place: int) -> Any:
        """Makes the forward pre-hook of the layer with index `place`."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if torch._C._current_graph_task_id() != -1:
                return None  # recomputed inside the backward, which has its own order
            last = place == len(self._spans) - 1
            self.fetch(place + 1)
            if not (last and torch.is_grad_enabled()):
                self.leave(place - 1)  # the last two stay for the backward
            hidden = args[0] if args else kwargs["hidden_states"]
            if not (torch.is_grad_enabled() and hidden.requires_grad):
                return None
            hidden = _BackwardDone.apply(hidden, self, place)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return before

    def backward_done(self, place: int) -> None:
        """Called after the backward of the layer with index `place`."""
        self.fetch(place - 2)
        self.leave(place)

    def fetch(self, place: int) -> None:
        if 0 <= place < len(self._spans):
            for start, end in self._spans[place]:
                page_in(start, end)

    def leave(self, place: int) -> None:
        if 0 <= place < len(self._spans):
            for start, end in self._spans[place]:
                page_out(start, end)


class _BackwardDone(torch.autograd.Function):
    """The identity; its backward signals that the layer's backward has run."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, pager: _Pager, place: int) -> torch.Tensor:
        ctx.pager, ctx.place = pager, place
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.pager.backward_done(ctx.place)
        return grads[0], None, None


def _map_again(model: PreTrainedModel, layers: Iterable[nn.Module], files: Sequence[Path]) -> None:
    """Replaces packed weights that loading has copied by memory-mapped ones."""
    where = {}
    for path in files:
        with safe_open(path, "pt") as file:
            where.update(dict.fromkeys(file.keys(), path))
    mapped = mapped_spans(files)
    inside = {id(module) for layer in layers for module in layer.modules()}
    for name, module in model.named_modules():
        if id(module) not in inside or not isinstance(module, PackedLinear):
            continue
        path = where.get(f"{name}.weight")
        if path is None or _is_mapped(module.packed, mapped):
            continue
        with safe_open(path, "pt") as file:
            stored = file.get_tensor(f"{name}.weight")
        if stored.shape == module.packed.shape and stored.dtype == module.packed.dtype:
            module.packed = stored


def _is_mapped(tensor: torch.Tensor, mapped: Sequence[Span]) -> bool:
    return any(start <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end for start, end in mapped)


def _spans(layer: nn.Module, mapped: Sequence[Span]) -> list[Span]:
    """Computes the whole pages of a layer's memory-mapped tensors, with adjacent spans joined."""
    page = mmap.PAGESIZE
    tensors = [*layer.parameters(), *layer.buffers()]
    spans = sorted(
        (tensor.data_ptr() // page * page, -(-(tensor.data_ptr() + tensor.nbytes) // page) * page)
        for tensor in tensors
        if tensor.nbytes >= _SMALLEST and _is_mapped(tensor, mapped)
    )
    joined: list[Span] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _reading_rate(files: Sequence[Path]) -> float:
    """Measures the rate, in bytes per second, of reading the first part of the largest file from disk."""
    largest = max(files, key=lambda path: path.stat().st_size)
    descriptor, length = os.open(largest, os.O_RDONLY), min(_SAMPLE, largest.stat().st_size)
    try:
        os.posix_fadvise(descriptor, 0, length, os.POSIX_FADV_DONTNEED)  # not from the page cache
        began = time.perf_counter()
        done = sum(len(os.pread(descriptor, _CHUNK, start)) for start in range(0, length, _CHUNK))
        return max(done, 1) / max(time.perf_counter() - began, 1e-9)
    finally:
        os.close(descriptor)
