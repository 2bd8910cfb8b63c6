"""Finds the decoder layers that can be fused: recognizes them by their parts, then compares outputs.

Nothing is decided by a model's name. A layer with the parts of a pre-norm or sandwich-norm transformer block is turned
into a `LayerSpec`, run on a few tokens, and compared with the output of transformers' own code on the same tokens. A
layer that does not agree, or has unknown parts, is not fused, and the reason is reported. Its known parts are replaced
one by one (`parts.py`), and the result is compared in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from lamina.compute.fusion.layer import LayerContext, run_layer
from lamina.compute.fusion.layer_parts import (
    Observed,
    Reason,
    out_features,
    read_norm,
    read_parts,
    stored_linear,
)
from lamina.compute.fusion.parts import Forward, attention_forward, experts_forward, gated_forward, norm_forward
from lamina.compute.fusion.spec import LayerSpec, Linears
from lamina.compute.ops.adapter import AdapterLinear, AdapterModule
from lamina.compute.ops.attention import packed_attention_forward
from lamina.compute.ops.experts import read_experts
from lamina.compute.ops.gated import read_activation
from lamina.compute.ops.linear_group import LinearGroup
from lamina.compute.ops.pool import Pool, Scratch
from lamina.machine.seeding import kept_generators, seeded

# How far the fused layer's change of its input may be from transformers', in units of the dtype's eps (L2, relative).
# Layers of the families that are fused are within 0.44 in bfloat16. The nearest wrong layer, with a norm over all heads
# instead of each head, is off by 0.88. In float32 sums round too, and more so the longer they are: small layers are
# within 1.5, one of 2,048 by 5,632 is off by 4.4 with AVX2. The same wrong layer is off by 60,000 there.
_SPACINGS = {torch.float32: 64.0}
_SPACINGS_OF_SHORT_DTYPES = 0.7

_TRIAL = "lamina_trial"
_TRIAL_LENGTHS = [9, 7]


def observe(model: PreTrainedModel, layers: list[nn.Module]) -> dict[nn.Module, Observed | Reason]:
    """Runs the model once on two short documents, and records every layer's forward."""
    calls: dict[nn.Module, dict[str, Any]] = {}
    inputs: dict[nn.Module, tuple[torch.Tensor, tuple[Any, ...], dict[str, Any]]] = {}
    results: dict[nn.Module, Observed | Reason] = {}

    def attention(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        calls[module] = kwargs
        return packed_attention_forward(module, *args, **kwargs)

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, *others = args or (kwargs["hidden_states"],)
        inputs[layer] = (x, tuple(others), kwargs)

    def after(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x, others, kwargs = inputs[layer]
        angles, call = kwargs.get("position_embeddings"), next((calls[m] for m in layer.modules() if m in calls), None)
        lengths = kwargs.get("document_lengths")
        if not isinstance(output, torch.Tensor) or not _are_angles(angles) or call is None:
            results[layer] = "its forward is not that of a decoder layer with rotary positions"
        elif lengths is None:
            results[layer] = "it is not told where documents end"
        else:
            cosine, sine = angles
            results[layer] = Observed(x[0], output[0], cosine[0], sine[0], call, lengths, others, kwargs)

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(after, with_kwargs=True) for layer in layers]
    adapters = [module for module in model.modules() if isinstance(module, AdapterLinear) and module.enabled]
    own = model.config._attn_implementation
    AttentionInterface.register(_TRIAL, attention)
    model.set_attn_implementation(_TRIAL)
    try:
        for adapter in adapters:  # their dropout would make the comparison random
            adapter.enabled = False
        _run_trial(model)
    finally:
        for adapter in adapters:
            adapter.enabled = True
        for handle in handles:
            handle.remove()
        model.set_attn_implementation(own or "eager")
    return results


def _are_angles(value: Any) -> TypeGuard[tuple[torch.Tensor, torch.Tensor]]:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, torch.Tensor) for part in value)


@torch.no_grad()
def _run_trial(model: PreTrainedModel) -> None:
    device = model.device
    ids = torch.arange(1, sum(_TRIAL_LENGTHS) + 1, device=device)[None] % model.config.get_text_config().vocab_size
    positions = torch.cat([torch.arange(length, device=device) for length in _TRIAL_LENGTHS])[None]
    with kept_generators(device):
        model(input_ids=ids, position_ids=positions, document_lengths=_TRIAL_LENGTHS, use_cache=False)


def recognize(layer: nn.Module, observed: Observed, scratch: Scratch) -> LayerSpec | Reason:
    """Builds a layer's spec and compares its output; returns the reason if it cannot be fused, including any exception.

    Args:
        layer: A decoder layer. Its weights belong to the spec's groups afterwards (see `release`).
        observed: The layer's own forward.
        scratch: Buffers that packed weights are dequantized into.
    """
    spec: LayerSpec | Reason = "it was not tried"
    try:
        spec = build_spec(layer, observed, scratch)
        reason = spec if isinstance(spec, str) else disagreement(spec, observed)
    except Exception as error:  # of any kind: a layer of unknown code may fail in any way
        reason = f"fused, it fails ({first_line(error)})"
    if reason is not None and not isinstance(spec, str):
        release(spec)
    return spec if reason is None else reason


def first_line(error: Exception) -> str:
    """Formats an exception as its type and the first line of its text."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def build_spec(layer: Any, observed: Observed, scratch: Scratch) -> LayerSpec | Reason:
    """Builds a layer's spec; returns the reason if it has unknown parts.

    Args:
        layer: A decoder layer. Its weights belong to the spec's groups afterwards (see `release`).
        observed: The layer's own forward.
        scratch: Buffers that packed weights are dequantized into.
    """
    parts = read_parts(layer, observed)
    if isinstance(parts, str):
        return parts
    first, attention_norm, mlp_norm, output_norm, query_norm, key_norm = parts.placed_norms
    assert first is not None and mlp_norm is not None
    return LayerSpec(
        input_norm=first,
        attention_norm=attention_norm,
        mlp_norm=mlp_norm,
        output_norm=output_norm,
        head_norms=None if query_norm is None or key_norm is None else (query_norm, key_norm),
        qkv=_linears(parts.projections, scratch),
        o=_linears([parts.o], scratch),
        gate_up=_linears(parts.gates, scratch),
        down=_linears([parts.down], scratch),
        heads=out_features(parts.projections[0]) // parts.head_size,
        key_heads=out_features(parts.projections[1]) // parts.head_size,
        head_size=parts.head_size,
        scale=parts.scale,
        window=parts.window,
        softcap=parts.softcap,
        activation=parts.activation,
    )


@torch.no_grad()
def disagreement(spec: LayerSpec, observed: Observed) -> Reason | None:
    """Runs the spec on the trial input without adapters; returns the reason if its output is not transformers'."""
    bare = replace(spec, **{name: _bare(getattr(spec, name)) for name in ("qkv", "o", "gate_up", "down")})
    context = LayerContext(observed.cosine, observed.sine, observed.lengths, False, Pool())
    with torch.no_grad():
        ours = run_layer(bare, observed.x, context)
    return layer_difference(observed.x, ours, observed.y)


def layer_difference(x: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> Reason | None:
    """Compares two outputs of a layer with the input x; returns the reason if they differ by more than rounding."""
    # The residual stream may be much larger than what the layer adds to it, and their sum is rounded too.
    change, whole = float((theirs.float() - x.float()).norm()), float(theirs.float().norm())
    allowed = _SPACINGS.get(x.dtype, _SPACINGS_OF_SHORT_DTYPES) * torch.finfo(x.dtype).eps * (change + whole)
    distance = float((ours.float() - theirs.float()).norm())
    if distance <= allowed:  # and not if it is NaN
        return None
    return f"fused, it gives other numbers (off by {distance:.2g}, allowed {allowed:.2g})"


def replace_parts(layer: nn.Module, observed: Observed) -> list[nn.Module]:
    """Replaces the forwards of a layer's known parts, if the layer's output stays the same.

    Returns:
        The replaced parts; `restore` gives them their own forwards back.
    """
    forwards: dict[nn.Module, Forward] = {}
    right = False
    try:
        theirs = _run_as_it_is(layer, observed)
        for module in layer.modules():
            forward = _part_forward(module, observed)
            if forward is not None:
                forwards[module] = forward
        for module, forward in forwards.items():
            module.forward = forward
        right = layer_difference(observed.x, _run_as_it_is(layer, observed), theirs) is None
    except Exception:  # as in `recognize`: the parts stay as they are
        right = False
    finally:
        if not right:
            restore(forwards)
    return list(forwards) if right else []


def restore(modules: Iterable[nn.Module]) -> None:
    """Restores the modules' own forwards."""
    for module in modules:
        module.__dict__.pop("forward", None)


@torch.no_grad()
def _run_as_it_is(layer: nn.Module, observed: Observed) -> torch.Tensor:
    """Runs the layer with its adapters; a seed makes their dropout the same each time."""
    with seeded(0, observed.x.device):
        arguments = {name: value for name, value in observed.arguments.items() if name != "hidden_states"}
        return layer(observed.x[None], *observed.positional, **arguments)[0]


def _part_forward(module: Any, observed: Observed) -> Forward | None:
    if isinstance(module, AdapterModule) or "forward" in vars(module):
        return None
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        activation = read_activation(module.act_fn)
        return None if activation is None else gated_forward(module, activation)
    if all(hasattr(module, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim")):
        known = not observed.attention.get("dropout") and observed.attention.get("s_aux") is None
        return attention_forward(module, observed.attention) if known else None
    experts = read_experts(module)
    if experts is not None:
        return experts_forward(experts)
    norm = None if next(module.children(), None) else read_norm(module, observed.x)
    return None if norm is None else norm_forward(module, norm.eps, norm.offset)


def release(spec: LayerSpec) -> None:
    """Gives the layer's linear modules separate weights again."""
    for linears in spec.all_linears():
        linears.group.release()


def _bare(linears: Linears) -> Linears:
    return replace(linears, modules=[nn.Identity() for _ in linears.modules])


def _linears(modules: list[nn.Module], scratch: Scratch) -> Linears:
    ranks = [module.rank or 0 if isinstance(module, AdapterLinear) else 0 for module in modules]
    stored = [stored_linear(module) for module in modules]
    return Linears(modules, LinearGroup([linear for linear in stored if linear is not None], ranks, scratch))
