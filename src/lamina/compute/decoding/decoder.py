"""`Decoder`: a bare model whose layers the kernels run, one step of many sequences at a time."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from lamina.compute.decoding import layouts
from lamina.compute.decoding.angles import Angles
from lamina.compute.decoding.cache import CacheMemory
from lamina.compute.decoding.forms import AdapterForms, Places, build_forms
from lamina.compute.decoding.layouts import BLOCK_TOKENS, address, decode_function
from lamina.compute.decoding.weights import describe_linear, describe_norm
from lamina.compute.fusion.layer_parts import Parts, read_norm
from lamina.compute.kernels import native
from lamina.compute.kernels.contract import SUFFIX
from lamina.compute.ops.row_forms import RowForm
from lamina.errors import KernelError
from lamina.structure.head import Head


@dataclass(frozen=True)
class Rows:
    """The new tokens of one step, sorted by adapter.

    Attributes:
        embeddings: (rows, width), in the base's dtype; overwritten by the step.
        positions: (rows,), int64; virtual tokens count.
        tables: (rows,), int64: which row of `blocks` is a token's own.
        blocks: (sequences, most blocks), int32: the cache blocks of each sequence in order.
        segments: (first row, row after the last, adapter or None), one after another over all rows.
        wanted: Rows whose logits are wanted, ascending, int64.
    """

    embeddings: torch.Tensor
    positions: np.ndarray
    tables: np.ndarray
    blocks: np.ndarray
    segments: Sequence[tuple[int, int, AdapterForms | None]]
    wanted: np.ndarray


class Refused(Exception):
    """Why the kernels do not run a model."""


class Decoder:
    """Runs steps of generation for a bare model.

    Attributes:
        places: Where its modules are, for `build_forms`.
        vocabulary: Rows of the head.
        width: Of the residual stream.
        dtype: What it computes in.
        cache: Keys and values; None before `allocate`.
    """

    def __init__(
        self, model: PreTrainedModel, layers: Sequence[Parts], angles: Angles, head: Head, places: Places
    ) -> None:
        self.places = places
        self.width, self.dtype = places.width, places.dtype
        self.cache: CacheMemory | None = None
        self._embedding = model.get_input_embeddings()
        self._parts, self._angles, self._head = list(layers), angles, head
        self._function = decode_function(self.dtype)
        self._layers = (layouts.Layer * len(layers))()
        first = layers[0]
        self._key_heads = outputs_of(first.projections[1]) // first.head_size
        self.head_size = first.head_size
        for layer, parts, kind in zip(self._layers, layers, angles.kind_of, strict=True):
            _fill(layer, parts, kind, self.dtype)
        weight = describe_linear(head.linear, self.dtype)
        final = read_norm(model.get_submodule(places.final_norm), torch.empty(0, dtype=self.dtype))
        if isinstance(weight, str) or final is None:
            raise Refused(weight if isinstance(weight, str) else "its last norm is of another kind")
        norm = describe_norm(final, self.dtype)
        if isinstance(norm, str):
            raise Refused(norm)
        self._final = final
        self.vocabulary = int(weight.rows)
        self._model = layouts.Model(
            layers=self._layers,
            layer_count=len(layers),
            width=self.width,
            inner=outputs_of(first.gates[0]),
            attended=outputs_of(first.projections[0]),
            final_norm=norm,
            head=weight,
            multiplier=head.transform.multiplier,
            softcap=head.transform.softcap or 0.0,
            rotated=angles.rotated,
        )
        self._positions = 0
        self._grow_tables(1)

    def allocate(self, blocks: int) -> CacheMemory:
        """Makes the cache, of `blocks` blocks of `BLOCK_TOKENS` tokens."""
        self.cache = CacheMemory(len(self._parts), blocks, self._key_heads, self.head_size, self.dtype)
        for number, layer in enumerate(self._layers):
            layer.keys, layer.values = address(self.cache.keys(number)), address(self.cache.values(number))
        return self.cache

    def block_bytes(self) -> int:
        """Bytes of a block of the cache."""
        return CacheMemory.bytes_of_block(len(self._parts), self._key_heads, self.head_size, self.dtype)

    def weight_bytes(self) -> int:
        """Bytes of weights that a step reads, the head's included and the embedding's not, if they are not the same."""
        modules = [module for parts in self._parts for module in parts.linears] + [self._head.linear]
        return sum(
            tensor.nbytes
            for module in modules
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        )

    @torch.no_grad()
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings (T, width) of token ids (T,), as the first layer takes them."""
        return self._embedding(ids).to(self.dtype)

    def forms(self, forms: Mapping[str, Sequence[RowForm]]) -> AdapterForms:
        """Lays out an adapter's row forms.

        Raises:
            NotMixed: They cannot be mixed.
        """
        return build_forms(forms, self.places)

    @torch.no_grad()
    def step(self, rows: Rows) -> torch.Tensor:
        """Computes one step: fills the cache with the keys and values of the rows.

        Returns:
            The logits of the wanted rows, (wanted, vocabulary), float32.

        Raises:
            KernelError: The rows do not fit together; nothing is computed.
        """
        self._check(rows)
        self._grow_tables(int(rows.positions.max()) + 1)
        count, wanted = len(rows.positions), len(rows.wanted)
        logits = torch.empty(wanted, self.vocabulary, dtype=torch.float32)
        segments = (layouts.Segment * len(rows.segments))()
        wanted_segments = (layouts.Segment * len(rows.segments))()
        for number, (begin, end, adapter) in enumerate(rows.segments):
            first, last = np.searchsorted(rows.wanted, [begin, end])
            structure = ctypes.pointer(adapter.structure) if adapter else None
            segments[number] = layouts.Segment(begin, end, structure)
            wanted_segments[number] = layouts.Segment(int(first), int(last), structure)
        step = layouts.Step(
            x=address(rows.embeddings),
            rows=count,
            positions=rows.positions.ctypes.data,
            tables=rows.tables.ctypes.data,
            blocks=rows.blocks.ctypes.data,
            table_row=rows.blocks.shape[1],
            segments=segments,
            segment_count=len(segments),
            largest_rank=max((adapter.rank for *_, adapter in rows.segments if adapter), default=0),
            wanted=rows.wanted.ctypes.data,
            wanted_count=wanted,
            wanted_segments=wanted_segments,
            logits=address(logits),
        )
        self._function(ctypes.byref(self._model), ctypes.byref(step))
        return logits

    @torch.no_grad()
    def store(self, blocks: Sequence[int], pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Writes each layer's keys and values, (key heads, n, head size), to the first n places of blocks."""
        assert self.cache is not None
        function = getattr(native.load_kernels().loaded, f"lamina_store_cache_{SUFFIX[self.dtype]}")
        function.restype = None
        table = np.array(blocks, dtype=np.int32)
        for number, (keys, values) in enumerate(pairs):
            shape = (self._key_heads, keys.shape[1], self.head_size)
            if tuple(keys.shape) != shape or tuple(values.shape) != shape or len(blocks) * BLOCK_TOKENS < keys.shape[1]:
                raise KernelError(f"keys of the shape {tuple(keys.shape)} do not fit {shape} in {len(blocks)} blocks")
            own = [tensor.to(self.dtype).contiguous() for tensor in (keys, values)]
            pointers = [*own, self.cache.keys(number), self.cache.values(number)]
            sizes = (0, keys.shape[1], self._key_heads, self.head_size)
            function(
                *(ctypes.c_void_p(tensor.data_ptr()) for tensor in pointers),
                ctypes.c_void_p(table.ctypes.data),
                *(ctypes.c_int64(size) for size in sizes),
            )

    @contextlib.contextmanager
    def only(self, layer: int | None) -> Iterator[None]:
        """Runs one layer alone inside the block, or with None no layer: the last norm and the head."""
        model = self._model
        try:
            model.layer_count = 0 if layer is None else 1
            model.layers = ctypes.cast(ctypes.byref(self._layers[layer or 0]), ctypes.POINTER(layouts.Layer))
            yield
        finally:
            model.layers, model.layer_count = self._layers, len(self._layers)

    def _check(self, rows: Rows) -> None:
        count = len(rows.positions)
        x = rows.embeddings
        good = (
            self.cache is not None
            and x.shape == (count, self.width)
            and x.dtype == self.dtype
            and x.is_contiguous()
            and count > 0
            and all(
                array.dtype == np.int64 and array.flags.c_contiguous
                for array in (rows.positions, rows.tables, rows.wanted)
            )
            and rows.blocks.dtype == np.int32
            and rows.blocks.flags.c_contiguous
            and rows.blocks.ndim == 2
            and len(rows.tables) == count
            and int(rows.positions.min()) >= 0
            and 0 <= int(rows.tables.min()) <= int(rows.tables.max()) < len(rows.blocks)
            and int(rows.positions.max()) < rows.blocks.shape[1] * BLOCK_TOKENS
            and 0 <= int(rows.blocks.min()) <= int(rows.blocks.max()) < self.cache.blocks
            and (not len(rows.wanted) or 0 <= int(rows.wanted[0]) <= int(rows.wanted[-1]) < count)
        )
        ends = [0, *(end for _, end, _ in rows.segments)]
        follows = [begin for begin, _, _ in rows.segments] == ends[:-1] and ends[-1] == count
        if not good or not follows:
            raise KernelError("the rows of a step do not fit together. This is a fault in lamina. Fix: report it.")

    def _grow_tables(self, positions: int) -> None:
        if positions <= self._positions:
            return
        self._tables = self._angles.tables(positions)
        self._positions = self._angles.positions
        for kind, (cosine, sine) in enumerate(self._tables):
            self._model.cosine[kind], self._model.sine[kind] = address(cosine), address(sine)


def outputs_of(linear: Any) -> int:
    """The output width of a linear layer."""
    return int(linear.out_features)


def _fill(layer: layouts.Layer, parts: Parts, kind: int, dtype: torch.dtype) -> None:
    for place, module in enumerate(parts.linears):
        weight = describe_linear(module, dtype)
        if isinstance(weight, str):
            raise Refused(weight)
        layer.linears[place] = weight
    for place, norm in enumerate(parts.placed_norms):
        described = describe_norm(norm, dtype)
        if isinstance(described, str):
            raise Refused(described)
        layer.norms[place] = described
    layer.heads = outputs_of(parts.projections[0]) // parts.head_size
    layer.key_heads = outputs_of(parts.projections[1]) // parts.head_size
    layer.size, layer.scale, layer.softcap = parts.head_size, parts.scale, parts.softcap or 0.0
    layer.window, layer.activation, layer.angles = parts.window or 0, parts.activation, kind
