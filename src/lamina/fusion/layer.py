"""A whole decoder layer, forward and backward, as one autograd function.

    h = x + post(o(attention(rotary(q, k), v)))          q, k, v = group(norm(x))
    y = h + post(down(act(gate) up))                     gate, up = group(norm(h))

Matrix products go through `ops/linear_group.py`, everything between them through `ops/kernels`, in one pass each. Saved
for the backward are only the results of products, attention, and the two residual streams; what is cheap (norms, the
gate's product, attention weights) is computed again. With `recompute`, only x is saved, and the layer runs again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lamina.methods.base import AdapterLinear
from lamina.ops.attention import AttentionSettings, attention_backward, attention_forward
from lamina.ops.kernels import kernels_for
from lamina.ops.linear_group import Detour, GroupState, LinearGroup


@dataclass(frozen=True)
class Norm:
    """An RMS norm: x / rms(x) (offset + weight)."""

    weight: torch.Tensor
    eps: float
    offset: float


@dataclass(frozen=True)
class Linears:
    """Linear modules with the same input, bare or adapted, and their group."""

    modules: list[nn.Module]
    group: LinearGroup

    def detours(self) -> list[Detour | None]:
        """Their detours as they are now; None where there is none or it is switched off."""
        return [module.detour() if isinstance(module, AdapterLinear) else None for module in self.modules]


@dataclass(frozen=True)
class LayerPlan:
    """A decoder layer, taken apart.

    Attributes:
        input_norm: Before attention.
        attention_norm: After attention, before the residual is added (Gemma), or None.
        mlp_norm: Before the gated unit.
        output_norm: After it (Gemma), or None.
        head_norms: On each query and each key head (Qwen 3, Gemma 3), or None.
        qkv, o, gate_up, down: The linears.
        heads: Query heads.
        key_heads: Key and value heads.
        head_size: Elements of a head.
        scale, window, softcap: See `AttentionSettings`.
        activation: `kernels.SILU` or `kernels.GELU_TANH`.
    """

    input_norm: Norm
    attention_norm: Norm | None
    mlp_norm: Norm
    output_norm: Norm | None
    head_norms: tuple[Norm, Norm] | None
    qkv: Linears
    o: Linears
    gate_up: Linears
    down: Linears
    heads: int
    key_heads: int
    head_size: int
    scale: float
    window: int | None
    softcap: float | None
    activation: int

    def all_linears(self) -> tuple[Linears, ...]:
        """In the order in which their gradients are returned."""
        return (self.qkv, self.o, self.gate_up, self.down)


@dataclass(frozen=True)
class Surroundings:
    """What a layer needs besides its input: angles (T, R), documents, and whether to run again in the backward."""

    cosine: torch.Tensor
    sine: torch.Tensor
    lengths: list[int]
    recompute: bool


def run_layer(plan: LayerPlan, x: torch.Tensor, around: Surroundings) -> torch.Tensor:
    """x: (T, D) -> (T, D)."""
    detours = [linears.detours() for linears in plan.all_linears()]
    for linears, own in zip(plan.all_linears(), detours, strict=True):
        linears.group.refresh(own)
    parameters = [t for own in detours for detour in own if detour is not None for t in detour.tensors()]
    return _Layer.apply(x, plan, around, detours, *parameters)  # pyright: ignore[reportReturnType]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        plan: LayerPlan,
        around: Surroundings,
        detours: list[list[Detour | None]],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        ctx.random = torch.get_rng_state() if around.recompute and _has_dropout(detours) else None
        computation = _Computation(plan, around, detours)
        y = computation.forward(x)
        wanted = any(ctx.needs_input_grad)
        ctx.computation = computation if wanted and not around.recompute else None
        ctx.again = (x, plan, around, detours) if wanted and around.recompute else None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Let go of at once, so that memory falls as the backward proceeds.
        computation, again = ctx.computation, ctx.again
        ctx.computation = ctx.again = None
        if again is not None:
            computation = _Computation(*again[1:])
            with torch.random.fork_rng(devices=[], enabled=ctx.random is not None):
                if ctx.random is not None:
                    torch.set_rng_state(ctx.random)
                computation.forward(again[0])
        assert computation is not None, "a fused layer's backward runs once"
        dx, detour_grads = computation.backward(grads[0].contiguous(), ctx.needs_input_grad[0])
        return dx, None, None, None, *detour_grads


def _has_dropout(detours: Sequence[Sequence[Detour | None]]) -> bool:
    return any(detour is not None and detour.dropout > 0.0 for own in detours for detour in own)


class _Computation:
    """One forward of a layer, holding what its backward needs."""

    def __init__(self, plan: LayerPlan, around: Surroundings, detours: list[list[Detour | None]]) -> None:
        self.plan = plan
        self.around = around
        self.detours = detours
        self.settings = AttentionSettings(around.lengths, plan.scale, plan.window, plan.softcap)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        self.kernels = kernels_for(x, self.plan.input_norm.weight)
        self.h = self._attention(x)
        return self._mlp(self.h)

    def backward(self, grad: torch.Tensor, wants_dx: bool) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        dh, mlp_grads = self._mlp_backward(grad)
        dx, attention_grads = self._attention_backward(dh, wants_dx)
        return dx, attention_grads + mlp_grads

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        plan, (d_qkv, d_o, _, _) = self.plan, self.detours
        x_ext = _beside(x, plan.qkv.group)
        self.input_scale = self._norm(plan.input_norm, x, x_ext[:, : x.shape[1]])
        qkv, self.qkv_state = plan.qkv.group.forward(x_ext, d_qkv)
        self.qkv_state = _kept_apart(self.qkv_state)
        if self.qkv_state.scaled is not None and plan.head_norms is None:
            self.qkv_state.scaled = self.qkv_state.scaled.clone()  # queries and keys are about to be turned in place
        self.q, self.k, self.v = self._heads(qkv)
        if plan.head_norms is not None:
            self.raw = (self.q, self.k)
            normed = [self._norm_heads(norm, raw) for norm, raw in zip(plan.head_norms, self.raw, strict=True)]
            (self.q, self.q_scale), (self.k, self.k_scale) = normed
        for heads in (self.q, self.k):
            self.kernels.rotary_(heads, self.around.cosine, self.around.sine, False)
        self.out_ext = _beside(x, plan.o.group)
        out = self._heads_of_output(self.out_ext)
        self.attention_state = attention_forward(self.q, self.k, self.v, self.settings, out)
        if plan.attention_norm is None:
            h, self.o_state = plan.o.group.forward(self.out_ext, d_o, residual=x)
            return h
        self.attention_out, self.o_state = plan.o.group.forward(self.out_ext, d_o)
        normed = torch.empty_like(x)
        self.attention_scale = self._norm(plan.attention_norm, self.attention_out, normed)
        return normed.add_(x)

    def _mlp(self, h: torch.Tensor) -> torch.Tensor:
        plan, (_, _, d_gate_up, d_down) = self.plan, self.detours
        h_ext = _beside(h, plan.gate_up.group)
        self.mlp_scale = self._norm(plan.mlp_norm, h, h_ext[:, : h.shape[1]])
        self.gate_up, state = plan.gate_up.group.forward(h_ext, d_gate_up)
        self.gate_up_state = _kept_apart(state)
        product_ext = _beside(h, plan.down.group)
        self.kernels.gated(self.gate_up, plan.activation, product_ext[:, : plan.down.group.in_features])
        residual = h if plan.output_norm is None else None
        y, state = plan.down.group.forward(product_ext, d_down, residual)
        self.down_state = _kept_apart(state)
        if plan.output_norm is None:
            return y
        self.mlp_out = y
        normed = torch.empty_like(h)
        self.output_scale = self._norm(plan.output_norm, y, normed)
        return normed.add_(h)

    def _mlp_backward(self, grad: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        plan, (_, _, d_gate_up, d_down) = self.plan, self.detours
        dy = grad
        if plan.output_norm is not None:
            dy = self._norm_backward(plan.output_norm, grad, self.mlp_out, self.output_scale)
        dy = plan.down.group.unscaled(dy, self.down_state)
        dproduct, gh_down = plan.down.group.backward_input(dy, self.down_state, d_down)
        product, dgate_up = torch.empty_like(dproduct), torch.empty_like(self.gate_up)
        self.kernels.gated_backward(self.gate_up, plan.activation, dproduct, product, dgate_up)
        down_grads = plan.down.group.backward_detours(dy, gh_down, product, self.down_state.h, self.down_state, d_down)
        dgate_up = plan.gate_up.group.unscaled(dgate_up, self.gate_up_state)
        dnormed, gh = plan.gate_up.group.backward_input(dgate_up, self.gate_up_state, d_gate_up)
        normed = torch.empty_like(self.h)
        self._norm(plan.mlp_norm, self.h, normed)
        state = self.gate_up_state
        grads = plan.gate_up.group.backward_detours(dgate_up, gh, normed, state.h, state, d_gate_up)
        dh = self._norm_backward(plan.mlp_norm, dnormed, self.h, self.mlp_scale, residual=grad)
        return dh, grads + down_grads

    def _attention_backward(self, dh: torch.Tensor, wants_dx: bool) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        plan, (d_qkv, d_o, _, _) = self.plan, self.detours
        dy = dh
        if plan.attention_norm is not None:
            dy = self._norm_backward(plan.attention_norm, dh, self.attention_out, self.attention_scale)
        dy = plan.o.group.unscaled(dy, self.o_state)
        dout, gh_o = plan.o.group.backward_input(dy, self.o_state, d_o)
        out = self.out_ext[:, : plan.o.group.in_features]
        o_grads = plan.o.group.backward_detours(dy, gh_o, out, self.o_state.h, self.o_state, d_o)
        dqkv = dh.new_empty(dh.shape[0], plan.qkv.group.out_features)
        dq, dk, dv = self._heads(dqkv)
        heads = (plan.heads, plan.head_size)
        attention_backward(
            self.q,
            self.k,
            self.v,
            out.unflatten(1, heads),
            dout.unflatten(1, heads),
            self.settings,
            self.attention_state,
            (dq, dk, dv),
        )
        for grad in (dq, dk):
            self.kernels.rotary_(grad, self.around.cosine, self.around.sine, True)
        if plan.head_norms is not None:
            for norm, grad, raw, scale in zip(
                plan.head_norms, (dq, dk), self.raw, (self.q_scale, self.k_scale), strict=True
            ):
                self._norm_heads_backward(norm, grad, raw, scale)
        dqkv = plan.qkv.group.unscaled(dqkv, self.qkv_state)
        dnormed, gh = plan.qkv.group.backward_input(dqkv, self.qkv_state, d_qkv, wants_dx)
        normed = torch.empty_like(self.x)
        self._norm(plan.input_norm, self.x, normed)
        state = self.qkv_state
        grads = plan.qkv.group.backward_detours(dqkv, gh, normed, state.h, state, d_qkv)
        dx = None
        if wants_dx:
            dx = self._norm_backward(plan.input_norm, dnormed, self.x, self.input_scale, residual=dh)
        return dx, grads + o_grads

    def _heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(T, out) -> views (T, heads, head size) of queries, keys and values."""
        size = self.plan.head_size
        widths = [self.plan.heads * size, self.plan.key_heads * size, self.plan.key_heads * size]
        return tuple(part.unflatten(1, (-1, size)) for part in qkv.split(widths, 1))

    def _heads_of_output(self, out_ext: torch.Tensor) -> torch.Tensor:
        return out_ext[:, : self.plan.o.group.in_features].unflatten(1, (self.plan.heads, self.plan.head_size))

    def _norm(self, norm: Norm, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return self.kernels.rms_norm(x, norm.weight, norm.eps, norm.offset, out)

    def _norm_backward(
        self,
        norm: Norm,
        grad: torch.Tensor,
        x: torch.Tensor,
        scale: torch.Tensor,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dx = torch.empty_like(x)
        self.kernels.rms_norm_backward(grad, x, norm.weight, scale, norm.offset, residual, dx)
        return dx

    def _norm_heads(self, norm: Norm, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = heads.reshape(-1, heads.shape[-1])
        out = torch.empty_like(rows)
        scale = self._norm(norm, rows, out)
        return out.view(heads.shape), scale

    def _norm_heads_backward(self, norm: Norm, grad: torch.Tensor, raw: torch.Tensor, scale: torch.Tensor) -> None:
        """Replaces the gradient of the normed heads by that of the raw ones."""
        rows = raw.reshape(-1, raw.shape[-1])
        grad.copy_(self._norm_backward(norm, grad.reshape(rows.shape), rows, scale).view(grad.shape))


def _kept_apart(state: GroupState) -> GroupState:
    """The state without the input that its `h` lies beside."""
    return replace(state, h=state.h.clone())


def _beside(like: torch.Tensor, group: LinearGroup) -> torch.Tensor:
    """(T, in + R): room for a group's input with the rank-sized products beside it."""
    room = like.new_empty(like.shape[0], group.in_features + group.rank)
    if group.in_features % 32:
        # oneDNN's AMX products read whole tiles, and multiply by zero what lies beyond the input's columns, which must
        # not be a NaN that was left there.
        room[:, group.in_features :].zero_()
    return room
