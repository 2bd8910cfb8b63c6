"""Reads the parts of a decoder layer: its linear modules, norms and settings, whatever its class is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lamina.compute.fusion.spec import Norm
from lamina.compute.ops.adapter import AdapterLinear, AdapterModule
from lamina.compute.ops.gated import read_activation
from lamina.compute.weights import DenseLinear, PackedFrozen, PackedLinear

Reason = str


@dataclass(frozen=True)
class Observed:
    """One layer's own forward on the trial input: its input, its output, and how it called the attention interface.

    Attributes:
        x, y: Input and output, (T, D).
        cosine, sine: Cosine and sine of the rotary angles, (T, R).
        attention: Keyword arguments that the layer passed to the attention interface.
        lengths: Tokens of each document; an adapter may have made them longer than the trial documents.
        positional: The layer's positional arguments after its input.
        arguments: The layer's keyword arguments.
    """

    x: torch.Tensor
    y: torch.Tensor
    cosine: torch.Tensor
    sine: torch.Tensor
    attention: dict[str, Any]
    lengths: list[int]
    positional: tuple[Any, ...]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """The modules and settings of a decoder layer: a `LayerSpec` before its weights are grouped.

    Attributes:
        projections: Query, key and value projection.
        o, down: The projections back to the residual stream.
        gates: Gate and up projection.
        norms: The modules of its norms, in the order of `formulas`.
        formulas: Their formulas: input, then attention and MLP as in `sandwich`, then queries and keys.
        sandwich: Whether there are norms after attention and MLP too.
        has_head_norms: Whether queries and keys have norms.
        head_size, scale, window, softcap, activation: As in `LayerSpec`.
    """

    projections: list[nn.Module]
    o: nn.Module
    gates: list[nn.Module]
    down: nn.Module
    norms: list[nn.Module]
    formulas: list[Norm]
    sandwich: bool
    has_head_norms: bool
    head_size: int
    scale: float
    window: int | None
    softcap: float | None
    activation: int

    @property
    def linears(self) -> list[nn.Module]:
        """All linear modules: q, k, v, o, gate, up, down."""
        return [*self.projections, self.o, *self.gates, self.down]

    @property
    def placed_norms(self) -> list[Norm | None]:
        """The norms of the input, after attention, of the MLP, after it, of queries and of keys; None for none."""
        first, second, *others = self.formulas
        sandwich = [second, *others[:2]] if self.sandwich else [None, second, None]
        return [first, *sandwich, *(self.formulas[-2:] if self.has_head_norms else [None, None])]


def read_parts(layer: Any, observed: Observed) -> Parts | Reason:
    """Reads a layer's modules and settings; returns the reason if it has unknown parts.

    Args:
        layer: A decoder layer.
        observed: The layer's own forward.
    """
    inside = next((adapter for adapter in _adapters(layer) if not isinstance(adapter, AdapterLinear)), None)
    if inside is not None:
        return f"{type(inside).__name__} cannot join a fused layer"
    attention: Any
    mlp: Any
    try:
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        gates = [mlp.gate_proj, mlp.up_proj]
        o, down = attention.o_proj, mlp.down_proj
        norms = [layer.input_layernorm, layer.post_attention_layernorm]
    except AttributeError as error:
        return f"it has other parts ({error})"
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    if sandwich:
        norms += [layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm]
    has_head_norms = hasattr(attention, "q_norm")
    if has_head_norms:
        norms += [attention.q_norm, attention.k_norm]
    reason = _obstacle(layer, [*projections, *gates, o, down], norms, observed)
    if reason:
        return reason
    formulas: list[Norm] = []
    for module in norms:
        norm = read_norm(module, observed.x)
        if norm is None:
            return f"it has a norm of another kind ({type(module).__name__})"
        formulas.append(norm)
    activation = read_activation(mlp.act_fn)
    if activation is None:
        return f"it has another activation ({type(mlp.act_fn).__name__})"
    call, head_size = observed.attention, attention.head_dim
    scale = head_size**-0.5 if call.get("scaling") is None else call["scaling"]
    settings = (head_size, scale, call.get("sliding_window"), call.get("softcap"), activation)
    return Parts(projections, o, gates, down, norms, formulas, sandwich, has_head_norms, *settings)


def _adapters(module: nn.Module) -> Iterator[AdapterModule]:
    """Iterates over the adapters in a module, without descending into them."""
    for child in module.children():
        if isinstance(child, AdapterModule):
            yield child
        else:
            yield from _adapters(child)


def _obstacle(layer: nn.Module, linears: list[nn.Module], norms: list[nn.Module], observed: Observed) -> Reason | None:
    for module in linears:
        if isinstance(module, AdapterLinear) and module.rank is None:
            return f"{type(module).__name__} cannot join a fused layer"
        if stored_linear(module) is None:
            return f"{type(module).__name__} holds its weight in another way"
    adapters = {id(t) for m in linears if isinstance(m, AdapterLinear) for t in m.parameters() if t.requires_grad}
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad and id(parameter) not in adapters:
            return f"its {name} is trained"
    stored = [stored_linear(module) for module in linears]
    weights = [linear.weight for linear in stored if linear is not None]
    if {(w.dtype, w.device) for w in weights} != {(observed.x.dtype, observed.x.device)}:
        return "its weights have another dtype or device than its input"
    memory = [linear.packed if isinstance(linear, PackedLinear) else linear.weight for linear in stored if linear]
    if len({tensor.data_ptr() for tensor in memory}) < len(memory):
        return "two of its linears share a weight"
    if observed.attention.get("attention_prefix") is not None:
        return "its attention has a trained prefix"
    if observed.attention.get("dropout"):
        return "its attention has dropout"
    if observed.attention.get("s_aux") is not None:
        return "its attention has sinks"
    if observed.positional:
        return "its forward takes more than a decoder layer's input"
    inside = (module for module in layer.modules() if module is not layer)  # the layer's own hooks still run
    if any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in inside):
        return "a hook is registered on one of its modules"
    return None


def stored_linear(module: nn.Module) -> nn.Linear | PackedLinear | None:
    """Finds the linear layer that stores a module's weight; None if a `LinearGroup` cannot take it."""
    frozen = module.frozen if isinstance(module, AdapterLinear) else None
    if isinstance(frozen, DenseLinear | PackedFrozen):
        module = frozen.base
    return module if type(module) is nn.Linear or isinstance(module, PackedLinear) else None


def out_features(module: nn.Module) -> int:
    stored = stored_linear(module)
    assert stored is not None
    return stored.out_features


@torch.no_grad()
def read_norm(module: nn.Module, like: torch.Tensor) -> Norm | None:
    """Finds the formula of an RMS norm by trying both on a row of numbers; None if neither matches."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    if getattr(module, "bias", None) is not None:
        return None
    x = torch.linspace(-2.0, 3.0, weight.shape[0], device=like.device).to(like.dtype)[None]
    theirs = module(x).float()
    for offset in (0.0, 1.0):
        ours = x.float() * torch.rsqrt(x.float().square().mean() + eps) * (offset + weight.float())
        if torch.allclose(ours, theirs, rtol=2e-2, atol=1e-3 * float(theirs.abs().max())):
            return Norm(weight.detach(), eps, offset)
    return None
