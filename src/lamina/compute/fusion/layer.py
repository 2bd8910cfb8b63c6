"""A whole decoder layer, forward and backward, as one autograd function.

    h = x + post(o(attention(rotary(q, k), v)))          q, k, v = group(norm(x))
    y = h + post(down(act(gate) up))                     gate, up = group(norm(h))

Matrix products go through `compute/ops/linear_group.py`, everything between them through `kernels`, in one pass each.
Saved for the backward are only the results of products, attention, and the two residual streams; what is cheap (norms,
the gate's product, attention weights) is computed again. With `recompute`, only x, attention's output and rank-sized
products are saved: the products before `down` run again, attention and (without a norm after it) `down` do not. With
`recompute` selective, gate and up alone run again: half of what is saved, for half of the forward's products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from lamina.compute.fusion.plan import LayerPlan, Norm
from lamina.compute.fusion.randomness import Randomness
from lamina.compute.kernels import as_in_forward, chosen_backend, kernels_for
from lamina.compute.ops.attention import AttentionSettings, attention_backward, attention_forward
from lamina.compute.ops.linear_group import GroupState, LinearGroup
from lamina.compute.ops.pool import Pool
from lamina.compute.ops.row_forms import LowRank

# Whether the backward runs most of a layer again, so that less is kept for it, or only what takes most room.
Recompute = bool | Literal["selective"]


@dataclass(frozen=True)
class Surroundings:
    """What a layer needs besides its input.

    Attributes:
        cosine, sine: Of the angles, (T, R).
        lengths: Of the documents.
        recompute: Which products the backward runs again, so that less is kept for it.
        pool: For the largest of what is kept.
    """

    cosine: torch.Tensor
    sine: torch.Tensor
    lengths: list[int]
    recompute: Recompute
    pool: Pool


def run_layer(plan: LayerPlan, x: torch.Tensor, around: Surroundings) -> torch.Tensor:
    """x: (T, D) -> (T, D)."""
    paths = [linears.paths() for linears in plan.all_linears()]
    for linears, own in zip(plan.all_linears(), paths, strict=True):
        linears.group.refresh(own)
    parameters = [t for own in paths for path in own if path is not None for t in path.tensors()]
    return _Layer.apply(x, plan, around, paths, *parameters)  # pyright: ignore[reportReturnType]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        plan: LayerPlan,
        around: Surroundings,
        paths: list[list[LowRank | None]],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        computation = _Computation(plan, around, paths)
        y = computation.forward(x)
        wanted = any(ctx.needs_input_grad)
        if not wanted:
            computation.let_go(True)
        elif around.recompute:
            computation.let_go(around.recompute)
        ctx.computation, ctx.backend = computation if wanted else None, chosen_backend()
        return y

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Let go of at once, so that memory falls as the backward proceeds.
        computation, ctx.computation = ctx.computation, None
        assert computation is not None, "a fused layer's backward runs once"
        dx, path_grads = computation.backward(grads[0].contiguous(), ctx.needs_input_grad[0])
        return dx, None, None, None, *path_grads


@dataclass
class _Heads:
    """Attention's input, and what its backward needs.

    Attributes:
        q, k, v: (T, heads, head size), turned by their angles.
        raw: Queries and keys before their norms, where they have norms.
        raw_scales: The scales of those norms.
        input_scale: Of the norm before attention.
        state: Of `qkv`.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    raw: tuple[torch.Tensor, ...]
    raw_scales: tuple[torch.Tensor, ...]
    input_scale: torch.Tensor
    state: GroupState


@dataclass
class _Middle:
    """Between the layer's two halves, and what the first one's backward needs.

    Attributes:
        h: (T, D), the residual stream.
        out: (T, D), the output of `o` where a norm follows, and `out_scale` that norm's scale.
        state: Of `o`.
    """

    h: torch.Tensor
    out: torch.Tensor | None
    out_scale: torch.Tensor | None
    state: GroupState


@dataclass
class _Gate:
    """The gated unit's input, and what its backward needs.

    Attributes:
        gate_up: (T, 2 M), gate beside up.
        scale: Of the norm before them.
        state: Of `gate_up`.
    """

    gate_up: torch.Tensor
    scale: torch.Tensor
    state: GroupState


@dataclass
class _End:
    """From the gated unit to the layer's output, and what its backward needs.

    Attributes:
        out: (T, D), the output of `down` where a norm follows, and `out_scale` that norm's scale.
        state: Of `down`.
    """

    out: torch.Tensor | None
    out_scale: torch.Tensor | None
    state: GroupState

    def is_small(self) -> bool:
        """Whether it holds rank-sized products alone, which are worth keeping when all else is computed again."""
        return self.out is None and self.state.is_small()


class _Computation:
    """One forward of a layer, holding what its backward needs, or as little as that can be computed again from."""

    def __init__(self, plan: LayerPlan, around: Surroundings, paths: list[list[LowRank | None]]) -> None:
        self.plan = plan
        self.around = around
        self.paths = paths
        self.settings = AttentionSettings(around.lengths, plan.scale, plan.window, plan.softcap)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        self.kernels = kernels_for(x, self.plan.input_norm.weight)
        dropout = any(path is not None and path.dropout > 0.0 for own in self.paths for path in own)
        self.random = Randomness(x.device, 3 if dropout and self.around.recompute else 0)
        self.heads = heads = self._run_heads()
        self.attended = _beside(x, self.plan.o.group)
        out = self._heads_of_output(self.attended)
        self.attention_state = attention_forward(heads.q, heads.k, heads.v, self.settings, out)
        self.middle = middle = self._run_middle()
        self.gate = gate = self._run_gate(middle.h)
        y, self.end = self._run_end(middle.h, gate)
        return y

    def let_go(self, recompute: Recompute) -> None:
        """Drops what `backward` can compute again: gate and up, or all but x, attention's output and what is small."""
        assert self.gate is not None
        self.around.pool.give(self.gate.gate_up)
        self.gate = None
        if recompute != "selective":
            self.heads = self.middle = None
            self.end = self.end if self.end and self.end.is_small() else None

    def backward(self, grad: torch.Tensor, wants_dx: bool) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        middle, self.middle = self.middle, None
        if middle is None:
            with self.random.again(1):
                middle = self._run_middle()
        gate, self.gate, end = self.gate, None, self.end
        if gate is None:
            with self.random.again(2):
                gate = self._run_gate(middle.h)
                end = end or self._run_end(middle.h, gate)[1]
        assert end is not None
        dh, mlp_grads = self._mlp_backward(grad, middle.h, gate, end)
        self.around.pool.give(gate.gate_up)
        del gate
        dattended, o_grads = self._output_backward(dh, middle)
        del middle
        heads, self.heads = self.heads, None
        if heads is None:
            with self.random.again(0):
                heads = self._run_heads()
        dx, qkv_grads = self._attention_backward(dh, dattended, heads, wants_dx)
        return dx, qkv_grads + o_grads + mlp_grads

    def _run_heads(self) -> _Heads:
        plan, x, (d_qkv, *_) = self.plan, self.x, self.paths
        self.random.mark(0)
        x_ext = _beside(x, plan.qkv.group)
        input_scale = self._norm(plan.input_norm, x, x_ext[:, : x.shape[1]])
        qkv, state = plan.qkv.group.forward(x_ext, d_qkv)
        state = _kept_apart(state)
        if state.scaled is not None and plan.head_norms is None:
            state.scaled = state.scaled.clone()  # queries and keys are about to be turned in place
        q, k, v = self._split(qkv)
        raw, raw_scales = (), ()
        if plan.head_norms is not None:
            raw = (q, k)
            normed = [self._norm_heads(norm, heads) for norm, heads in zip(plan.head_norms, raw, strict=True)]
            (q, k), raw_scales = zip(*normed, strict=True)
        for heads in (q, k):
            self.kernels.rotary_(heads, self.around.cosine, self.around.sine, False)
        return _Heads(q, k, v, raw, raw_scales, input_scale, state)

    def _run_middle(self) -> _Middle:
        plan, x, (_, d_o, *_) = self.plan, self.x, self.paths
        self.random.mark(1)
        if plan.attention_norm is None:
            h, state = plan.o.group.forward(self.attended, d_o, residual=x)
            return _Middle(h, None, None, state)
        out, state = plan.o.group.forward(self.attended, d_o)
        h = torch.empty_like(x)
        out_scale = self._norm(plan.attention_norm, out, h)
        return _Middle(h.add_(x), out, out_scale, state)

    def _run_gate(self, h: torch.Tensor) -> _Gate:
        plan, (_, _, d_gate_up, _) = self.plan, self.paths
        self.random.mark(2)
        h_ext = _beside(h, plan.gate_up.group)
        scale = self._norm(plan.mlp_norm, h, h_ext[:, : h.shape[1]])
        room = self.around.pool.take(h, h.shape[0], plan.gate_up.group.out_features)
        gate_up, state = plan.gate_up.group.forward(h_ext, d_gate_up, out=room)
        return _Gate(gate_up, scale, _kept_apart(state))

    def _run_end(self, h: torch.Tensor, gate: _Gate) -> tuple[torch.Tensor, _End]:
        plan, (*_, d_down) = self.plan, self.paths
        product_ext = _beside(h, plan.down.group)
        gate_rows, up_rows = gate.gate_up.chunk(2, 1)
        self.kernels.gated(gate_rows, up_rows, plan.activation, product_ext[:, : plan.down.group.in_features])
        if plan.output_norm is None:
            y, state = plan.down.group.forward(product_ext, d_down, h)
            return y, _End(None, None, _kept_apart(state))
        out, state = plan.down.group.forward(product_ext, d_down)
        y = torch.empty_like(h)
        out_scale = self._norm(plan.output_norm, out, y)
        return y.add_(h), _End(out, out_scale, _kept_apart(state))

    def _mlp_backward(
        self, grad: torch.Tensor, h: torch.Tensor, gate: _Gate, end: _End
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        plan, (_, _, d_gate_up, d_down) = self.plan, self.paths
        dy = grad
        if plan.output_norm is not None:
            assert end.out is not None and end.out_scale is not None
            dy = self._norm_backward(plan.output_norm, grad, end.out, end.out_scale)
        dy = plan.down.group.unscaled(dy, end.state)
        dproduct, gh_down = plan.down.group.backward_input(dy, end.state, d_down)
        state = gate.state
        dgate_up = gate.gate_up if state.scaled is None else gate.gate_up.clone()  # it may be `scaled` itself
        dgate, dup = dgate_up.chunk(2, 1)
        self.kernels.gated_backward_(dgate, dup, plan.activation, dproduct)
        product = dproduct
        down_grads = plan.down.group.backward_paths(dy, gh_down, product, end.state.h, end.state, d_down)
        dgate_up = plan.gate_up.group.unscaled(dgate_up, state)
        dnormed, gh = plan.gate_up.group.backward_input(dgate_up, state, d_gate_up)
        normed = torch.empty_like(h)
        self._norm(plan.mlp_norm, h, normed)
        grads = plan.gate_up.group.backward_paths(dgate_up, gh, normed, state.h, state, d_gate_up)
        dh = self._norm_backward(plan.mlp_norm, dnormed, h, gate.scale, residual=grad)
        return dh, grads + down_grads

    def _output_backward(self, dh: torch.Tensor, middle: _Middle) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Through `o` and the norm after it: the gradient of attention's output, (T, heads * head size)."""
        plan, (_, d_o, _, _), state = self.plan, self.paths, middle.state
        dy = dh
        if plan.attention_norm is not None:
            assert middle.out is not None and middle.out_scale is not None
            dy = self._norm_backward(plan.attention_norm, dh, middle.out, middle.out_scale)
        dy = plan.o.group.unscaled(dy, state)
        dattended, gh = plan.o.group.backward_input(dy, state, d_o)
        attended = self.attended[:, : plan.o.group.in_features]
        return dattended, plan.o.group.backward_paths(dy, gh, attended, state.h, state, d_o)

    def _attention_backward(
        self, dh: torch.Tensor, dattended: torch.Tensor, heads: _Heads, wants_dx: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        plan, (d_qkv, *_), state = self.plan, self.paths, heads.state
        dqkv = dh.new_empty(dh.shape[0], plan.qkv.group.out_features)
        dq, dk, dv = self._split(dqkv)
        attention_backward(
            heads.q,
            heads.k,
            heads.v,
            self._heads_of_output(self.attended),
            dattended.unflatten(1, (plan.heads, plan.head_size)),
            self.settings,
            self.attention_state,
            (dq, dk, dv),
        )
        for grad in (dq, dk):
            self.kernels.rotary_(grad, self.around.cosine, self.around.sine, True)
        if plan.head_norms is not None:
            for norm, grad, raw, scale in zip(plan.head_norms, (dq, dk), heads.raw, heads.raw_scales, strict=True):
                self._norm_heads_backward(norm, grad, raw, scale)
        dqkv = plan.qkv.group.unscaled(dqkv, state)
        dnormed, gh = plan.qkv.group.backward_input(dqkv, state, d_qkv, wants_dx)
        normed = torch.empty_like(self.x)
        self._norm(plan.input_norm, self.x, normed)
        grads = plan.qkv.group.backward_paths(dqkv, gh, normed, state.h, state, d_qkv)
        dx = None
        if wants_dx:
            dx = self._norm_backward(plan.input_norm, dnormed, self.x, heads.input_scale, residual=dh)
        return dx, grads

    def _split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
    """The state without the input that its `h` may lie beside."""
    return replace(state, h=state.h.contiguous())


def _beside(like: torch.Tensor, group: LinearGroup) -> torch.Tensor:
    """(T, in + room): for a group's input with rank-sized products beside it."""
    room = like.new_empty(like.shape[0], group.in_features + group.room)
    if group.in_features % 32:
        # oneDNN's AMX products read whole tiles, and multiply by zero what lies beyond the input's columns, which must
        # not be a NaN that was left there.
        room[:, group.in_features :].zero_()
    return room
