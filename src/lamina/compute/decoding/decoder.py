"""`Decoder`: a bare model whose layers the kernels run, checked layer by layer against the model's own code."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.decoding import layouts
from lamina.compute.decoding.angles import Angles
from lamina.compute.decoding.cache import CacheMemory
from lamina.compute.decoding.forms import AdapterForms, Places, build_forms
from lamina.compute.decoding.layouts import BLOCK_TOKENS, KEY, QUERY, address, decode_function
from lamina.compute.decoding.weights import describe_linear, describe_norm
from lamina.compute.fusion.recognize import (
    Observed,
    Parts,
    first_line,
    layer_difference,
    observe,
    read_norm,
    read_parts,
)
from lamina.compute.kernels import native
from lamina.compute.kernels.contract import SUFFIX
from lamina.compute.kernels.table import MOST_HEAD_SIZE
from lamina.compute.ops.adapter import AdapterModule
from lamina.compute.ops.row_forms import RowForm
from lamina.errors import KernelError
from lamina.structure.head import Head, find_head
from lamina.structure.layers import decoder_layers

Reason = str

# Units of eps times the largest logit by which the head's logits may be off, which sum the same products in another
# order.
_HEAD_ROUNDINGS = {torch.float32: 64.0, torch.bfloat16: 2.0}


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
        self._key_heads = _outputs(first.projections[1]) // first.head_size
        self.head_size = first.head_size
        for layer, parts, kind in zip(self._layers, layers, angles.kind_of, strict=True):
            _fill(layer, parts, kind, self.dtype)
        weight = describe_linear(head.linear, self.dtype)
        final = read_norm(_final_norm(model, head, places), torch.empty(0, dtype=self.dtype))
        if isinstance(weight, str) or final is None:
            raise _Refused(weight if isinstance(weight, str) else "its last norm is of another kind")
        norm = describe_norm(final, self.dtype)
        if isinstance(norm, str):
            raise _Refused(norm)
        self._final = final
        self.vocabulary = int(weight.rows)
        self._model = layouts.Model(
            layers=self._layers,
            layer_count=len(layers),
            width=self.width,
            inner=_outputs(first.gates[0]),
            attended=_outputs(first.projections[0]),
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


class _Refused(Exception):
    """Why the kernels do not run a model."""


def build_decoder(model: PreTrainedModel) -> Decoder | Reason:
    """Builds the decoder of a bare model on the CPU, and compares it with the model's own code, layer by layer.

    Args:
        model: In evaluation mode, without adapters. Its weights stay where they are, and are read in place.

    Returns:
        The decoder, or why there is none.
    """
    if model.device.type != "cpu" or model.dtype not in SUFFIX:
        return f"it is {str(model.dtype).removeprefix('torch.')} on {model.device.type}"
    if (unavailable := native.unavailable()) is not None:
        return unavailable
    if any(isinstance(module, AdapterModule) for module in model.modules()):
        return "an adapter is attached to it"
    layers = decoder_layers(model)
    if not layers:
        return f"{type(model).__name__} keeps its decoder layers in no known place"
    try:
        return _built(model, layers)
    except _Refused as refused:
        return str(refused)
    except Exception as error:  # of any kind: a model of unknown code may fail in any way
        return f"its layers could not be read ({first_line(error)})"


def _built(model: PreTrainedModel, layers: list[nn.Module]) -> Decoder:
    head = find_head(model)
    if head.whole_model:
        raise _Refused("its logits are not those of a decoder and a head")
    logits: list[torch.Tensor] = []
    ids: list[torch.Tensor] = []
    handles = [
        model.register_forward_hook(lambda module, args, output: logits.append(output.logits[0].float())),
        model.register_forward_pre_hook(
            lambda module, args, kwargs: ids.append(kwargs["input_ids"][0]), with_kwargs=True
        ),
    ]
    try:
        seen = observe(model, layers)
    finally:
        for handle in handles:
            handle.remove()
    observed: list[Observed] = []
    parts: list[Parts] = []
    for layer in layers:
        found = seen.get(layer, "it did not run on a text")
        read = found if isinstance(found, str) else read_parts(layer, found)
        if isinstance(read, str) or isinstance(found, str):
            raise _Refused(f"{type(layer).__name__}: {read}")
        observed.append(found)
        parts.append(read)
    _check_alike(parts)
    angles = Angles(model, layers)
    if angles.kinds > 2:
        raise _Refused(f"its layers have {angles.kinds} kinds of rotary angles")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and angles.depend_on_length(longest):
        raise _Refused("its rotary angles depend on the length of the sequence")
    decoder = Decoder(model, parts, angles, head, _places(model, layers, parts, head))
    _compare(decoder, ids[0], observed, logits[0])
    return decoder


def _check_alike(parts: Sequence[Parts]) -> None:
    first = parts[0]
    sizes = [(_outputs(p.projections[0]), _outputs(p.projections[1]), p.head_size, _outputs(p.gates[0])) for p in parts]
    if len(set(sizes)) > 1:
        raise _Refused("its layers have different sizes")
    if first.head_size % 2 or first.head_size > MOST_HEAD_SIZE:
        raise _Refused(f"its heads have {first.head_size} elements")


def _outputs(linear: Any) -> int:
    return int(linear.out_features)


def _fill(layer: layouts.Layer, parts: Parts, kind: int, dtype: torch.dtype) -> None:
    for place, module in enumerate(parts.linears):
        weight = describe_linear(module, dtype)
        if isinstance(weight, str):
            raise _Refused(weight)
        layer.linears[place] = weight
    for place, norm in enumerate(parts.placed_norms):
        described = describe_norm(norm, dtype)
        if isinstance(described, str):
            raise _Refused(described)
        layer.norms[place] = described
    layer.heads = _outputs(parts.projections[0]) // parts.head_size
    layer.key_heads = _outputs(parts.projections[1]) // parts.head_size
    layer.size, layer.scale, layer.softcap = parts.head_size, parts.scale, parts.softcap or 0.0
    layer.window, layer.activation, layer.angles = parts.window or 0, parts.activation, kind


def _places(model: PreTrainedModel, layers: list[nn.Module], parts: Sequence[Parts], head: Head) -> Places:
    names = {module: name for name, module in model.named_modules()}
    embedding = model.get_input_embeddings()
    final = _find_final_norm(model, layers, head)
    linears = {names[m]: (number, place) for number, p in enumerate(parts) for place, m in enumerate(p.linears)}
    shapes = {names[m]: (_outputs(m), int(m.in_features)) for p in parts for m in (*p.linears, head.linear)}  # pyright: ignore[reportArgumentType]
    norms: dict[str, tuple[int, int]] = {}
    for number, each in enumerate(parts):
        first, second, *others = each.norms
        places = [(first, layouts.INPUT)]
        if each.sandwich:
            places += [(second, layouts.ATTENTION), (others[0], layouts.MLP), (others[1], layouts.OUTPUT)]
        else:
            places.append((second, layouts.MLP))
        if each.has_head_norms:
            places += [(each.norms[-2], QUERY), (each.norms[-1], KEY)]
        norms |= {names[module]: (number, place) for module, place in places}
    sublayers = {
        names[module]: (number, which)
        for number, layer in enumerate(layers)
        for which, module in enumerate((layer.self_attn, layer.mlp))
    }
    weight = getattr(embedding, "weight", None)
    return Places(
        linears=linears,
        norms=norms,
        sublayers=sublayers,
        shapes=shapes,
        head=names[head.linear],
        embedding=names[embedding],
        final_norm=names[final],
        layers=len(layers),
        width=int(parts[0].projections[0].in_features),  # pyright: ignore[reportArgumentType]
        dtype=model.dtype,
        tied=weight is not None and getattr(head.linear, "weight", None) is weight,
    )


def _final_norm(model: PreTrainedModel, head: Head, places: Places) -> nn.Module:
    return model.get_submodule(places.final_norm)


def _find_final_norm(model: PreTrainedModel, layers: list[nn.Module], head: Head) -> nn.Module:
    """The module of the decoder, outside of the layers, that computes what the head reads."""
    inside = {part for layer in layers for part in layer.modules()}
    candidates = [
        module
        for module in head.decoder.modules()
        if module not in inside and next(module.children(), None) is None and _is_norm(module, head.linear)
    ]
    if len(candidates) != 1:
        raise _Refused(f"{len(candidates)} modules of its decoder look like its last norm")
    return candidates[0]


def _is_norm(module: nn.Module, head: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1 and weight.shape[0] == head.in_features


@torch.no_grad()
def _compare(decoder: Decoder, ids: torch.Tensor, observed: Sequence[Observed], logits: torch.Tensor) -> None:
    """Runs every layer on what the model's own got, the embedding and the head too, and refuses what differs."""
    first = observed[0]
    if not torch.equal(decoder.embed(ids), first.x):
        raise _Refused("its embeddings are changed before the first layer")
    lengths = first.lengths
    blocks = [-(-length // BLOCK_TOKENS) for length in lengths]
    table = np.zeros((len(lengths), max(blocks)), dtype=np.int32)
    used = 0
    for number, count in enumerate(blocks):
        table[number, :count] = np.arange(used, used + count)
        used += count
    decoder.allocate(used)
    positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int64)
    tables = np.repeat(np.arange(len(lengths)), lengths).astype(np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    count = decoder._model.layer_count
    try:
        for number, seen in enumerate(observed):
            decoder._model.layers = ctypes.cast(ctypes.byref(decoder._layers[number]), ctypes.POINTER(layouts.Layer))
            decoder._model.layer_count = 1
            x = seen.x.detach().clone().contiguous()
            decoder.step(Rows(x, positions, tables, table, [(0, len(x), None)], nothing))
            reason = layer_difference(seen.x, x, seen.y)
            if reason is not None:
                raise _Refused(f"layer {number}: {reason}")
        decoder._model.layer_count = 0
        x = observed[-1].y.detach().clone().contiguous()
        everything = np.arange(len(x), dtype=np.int64)
        ours = decoder.step(Rows(x, positions, tables, table, [(0, len(x), None)], everything))
    finally:
        decoder._model.layers, decoder._model.layer_count = decoder._layers, count
        decoder.cache = None
    if ours.shape != logits.shape:
        raise _Refused("its head gives logits of another shape")
    off = float((ours - logits).abs().max())
    allowed = _HEAD_ROUNDINGS[decoder.dtype] * torch.finfo(decoder.dtype).eps * float(logits.abs().max())
    if not off <= allowed:
        raise _Refused(f"its last norm and head give other logits (off by {off:.2g}, allowed {allowed:.2g})")
