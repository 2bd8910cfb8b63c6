"""Builds a `Decoder` for a bare model, and compares it with the model's own code, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lamina.compute.decoding import layouts
from lamina.compute.decoding.angles import Angles
from lamina.compute.decoding.decoder import Decoder, Refused, Rows, outputs_of
from lamina.compute.decoding.forms import Places
from lamina.compute.decoding.layouts import BLOCK_TOKENS, KEY, QUERY
from lamina.compute.fusion.layer_parts import Observed, Parts, Reason, read_parts
from lamina.compute.fusion.recognize import first_line, layer_difference, observe
from lamina.compute.kernels import native
from lamina.compute.kernels.contract import SUFFIX
from lamina.compute.kernels.table import MOST_HEAD_SIZE
from lamina.compute.ops.adapter import AdapterModule
from lamina.structure.head import Head, find_head
from lamina.structure.layers import decoder_layers

# Units of eps times the largest logit by which the head's logits may be off, which sum the same products in another
# order.
_HEAD_ROUNDINGS = {torch.float32: 64.0, torch.bfloat16: 2.0}


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
    except Refused as refused:
        return str(refused)
    except Exception as error:  # of any kind: a model of unknown code may fail in any way
        return f"its layers could not be read ({first_line(error)})"


def _built(model: PreTrainedModel, layers: list[nn.Module]) -> Decoder:
    head = find_head(model)
    if head.whole_model:
        raise Refused("its logits are not those of a decoder and a head")
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
            raise Refused(f"{type(layer).__name__}: {read}")
        observed.append(found)
        parts.append(read)
    _check_alike(parts)
    angles = Angles(model, layers)
    if angles.kinds > 2:
        raise Refused(f"its layers have {angles.kinds} kinds of rotary angles")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and angles.depend_on_length(longest):
        raise Refused("its rotary angles depend on the length of the sequence")
    decoder = Decoder(model, parts, angles, head, _places(model, layers, parts, head))
    _compare(decoder, ids[0], observed, logits[0])
    return decoder


def _check_alike(parts: Sequence[Parts]) -> None:
    first = parts[0]
    sizes = [
        (outputs_of(p.projections[0]), outputs_of(p.projections[1]), p.head_size, outputs_of(p.gates[0])) for p in parts
    ]
    if len(set(sizes)) > 1:
        raise Refused("its layers have different sizes")
    if first.head_size % 2 or first.head_size > MOST_HEAD_SIZE:
        raise Refused(f"its heads have {first.head_size} elements")


def _places(model: PreTrainedModel, layers: list[nn.Module], parts: Sequence[Parts], head: Head) -> Places:
    names = {module: name for name, module in model.named_modules()}
    embedding = model.get_input_embeddings()
    final = _find_final_norm(layers, head)
    linears = {names[m]: (number, place) for number, p in enumerate(parts) for place, m in enumerate(p.linears)}
    shapes = {names[m]: (outputs_of(m), int(m.in_features)) for p in parts for m in (*p.linears, head.linear)}  # pyright: ignore[reportArgumentType]
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
    )


def _find_final_norm(layers: list[nn.Module], head: Head) -> nn.Module:
    """The module of the decoder, outside of the layers, that computes what the head reads."""
    inside = {part for layer in layers for part in layer.modules()}
    candidates = [
        module
        for module in head.decoder.modules()
        if module not in inside and next(module.children(), None) is None and _is_norm(module, head.linear)
    ]
    if len(candidates) != 1:
        raise Refused(f"{len(candidates)} modules of its decoder look like its last norm")
    return candidates[0]


def _is_norm(module: nn.Module, head: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 1 and weight.shape[0] == head.in_features


@torch.no_grad()
def _compare(decoder: Decoder, ids: torch.Tensor, observed: Sequence[Observed], logits: torch.Tensor) -> None:
    """Runs every layer on what the model's own got, the embedding and the head too, and refuses what differs."""
    first = observed[0]
    if not torch.equal(decoder.embed(ids), first.x):
        raise Refused("its embeddings are changed before the first layer")
    blocks = [-(-length // BLOCK_TOKENS) for length in first.lengths]
    table = np.zeros((len(blocks), max(blocks)), dtype=np.int32)
    for number, count in enumerate(blocks):
        table[number, :count] = np.arange(count) + sum(blocks[:number])
    positions = np.concatenate([np.arange(length) for length in first.lengths]).astype(np.int64)
    tables = np.repeat(np.arange(len(blocks)), first.lengths).astype(np.int64)
    nothing, everything = np.zeros(0, dtype=np.int64), np.arange(len(positions), dtype=np.int64)
    decoder.allocate(sum(blocks))

    def run(x: torch.Tensor, wanted: np.ndarray) -> torch.Tensor:
        return decoder.step(Rows(x, positions, tables, table, [(0, len(x), None)], wanted))

    for number, seen in enumerate(observed):
        x = seen.x.detach().clone().contiguous()
        with decoder.only(number):
            run(x, nothing)
        reason = layer_difference(seen.x, x, seen.y)
        if reason is not None:
            raise Refused(f"layer {number}: {reason}")
    with decoder.only(None):
        ours = run(observed[-1].y.detach().clone().contiguous(), everything)
    decoder.cache = None
    if ours.shape != logits.shape:
        raise Refused("its head gives logits of another shape")
    off = float((ours - logits).abs().max())
    allowed = _HEAD_ROUNDINGS[decoder.dtype] * torch.finfo(decoder.dtype).eps * float(logits.abs().max())
    if not off <= allowed:
        raise Refused(f"its last norm and head give other logits (off by {off:.2g}, allowed {allowed:.2g})")
