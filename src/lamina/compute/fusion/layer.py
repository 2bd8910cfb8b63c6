"""A whole decoder layer, forward and backward, as one autograd function.

    h = x + post(o(attention(rotary(q, k), v)))          q, k, v = group(norm(x))
    y = h + post(down(act(gate) up))                     gate, up = group(norm(h))

Matrix products go through `compute/ops/linear_group.py`, the operations between them through `kernels`, in one pass
each. Only the results of products, attention's output and the two residual streams are saved for the backward; cheap
results (norms, the gate's product, attention weights) are recomputed. With `recompute`, only x, attention's output and
rank-sized
products are saved: the products before `down` are recomputed, but attention and (without a norm after it) `down` are
    not.
With `recompute` selective, gate and up alone are recomputed: that saves half of the memory for half of the forward's
products.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from lamina.compute.fusion.randomness import Randomness
from lamina.compute.fusion.spec import LayerSpec, Norm
from lamina.compute.kernels import as_in_forward, chosen_backend, kernels_for
from lamina.compute.ops.attention import AttentionSettings, attention_backward, attention_forward
from lamina.compute.ops.linear_group import GroupState, LinearGroup
from lamina.compute.ops.pool import Pool
from lamina.compute.ops.row_forms import LowRank

# Whether the backward recomputes most of a layer to save memory, or (`selective`) only gate and up, the largest
# tensors.
Recompute = bool | Literal["selective"]


@dataclass(frozen=True)
class LayerContext:
    """What a layer needs besides its input.

    Attributes:
        cosine, sine: Cosine and sine of the rotary angles, (T, R).
        lengths: Tokens of each document.
        recompute: Which products the backward recomputes to save memory.
        pool: Buffers for gate and up, the largest tensors that are saved.
    """

    cosine: torch.Tensor
    sine: torch.Tensor
    lengths: list[int]
    recompute: Recompute
    pool: Pool


def run_layer(spec: LayerSpec, x: torch.Tensor, context: LayerContext) -> torch.Tensor:
    """Computes the layer: x (T, D) -> (T, D)."""
    paths = [linears.paths() for linears in spec.all_linears()]
    for linears, own in zip(spec.all_linears(), paths, strict=True):
        linears.group.refresh(own)
    parameters = [t for own in paths for path in own if path is not None for t in path.tensors()]
    return _Layer.apply(x, spec, context, paths, *parameters)  # pyright: ignore[reportReturnType]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        spec: LayerSpec,
        context: LayerContext,
        paths: list[list[LowRank | None]],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        computation = _Computation(spec, context, paths)
        y = computation.forward(x)
        wanted = any(ctx.needs_input_grad)
        if not wanted:
            computation.free(True)
        elif context.recompute:
            computation.free(context.recompute)
        ctx.computation, ctx.backend = computation if wanted else None, chosen_backend()
        return y

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Released at once, so that memory falls as the backward proceeds.
        computation, ctx.computation = ctx.computation, None
        assert computation is not None, "a fused layer's backward runs once"
        dx, path_grads = computation.backward(grads[0].contiguous(), ctx.needs_input_grad[0])
        return dx, None, None, None, *path_grads


@dataclass
class _Heads:
    """Attention's input, and what its backward needs.

    Attributes:
        q, k, v: Queries, keys and values (T, heads, head size); queries and keys are rotated.
        raw: Queries and keys before their norms; empty without norms.
        raw_scales: The scales of those norms.
        input_scale: The scale of the norm before attention.
        state: The state of `qkv`.
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
    """The residual stream between attention and the MLP, and what the backward of `o` needs.

    Attributes:
        h: The residual stream, (T, D).
        out: The output of `o`, (T, D), if a norm follows; else None.
        out_scale: That norm's scale, or None.
        state: The state of `o`.
    """

    h: torch.Tensor
    out: torch.Tensor | None
    out_scale: torch.Tensor | None
    state: GroupState


@dataclass
class _Gate:
    """Gate and up, and what their backward needs.

    Attributes:
        gate_up: Gate and up, concatenated, (T, 2 M).
        scale: The scale of the norm before them.
        state: The state of `gate_up`.
    """

    gate_up: torch.Tensor
    scale: torch.Tensor
    state: GroupState


@dataclass
class _End:
    """What the backward of `down` needs.

    Attributes:
        out: The output of `down`, (T, D), if a norm follows; else None.
        out_scale: That norm's scale, or None.
        state: The state of `down`.
    """

    out: torch.Tensor | None
    out_scale: torch.Tensor | None
    state: GroupState

    def is_small(self) -> bool:
        """Whether it holds only rank-sized products, which are kept even when everything else is recomputed."""
        return self.out is None and self.state.is_small()


class _Computation:
    """One forward of a layer. Holds what its backward needs, or the little from which that can be recomputed."""

    def __init__(self, spec: LayerSpec, context: LayerContext, paths: list[list[LowRank | None]]) -> None:
        self.spec = spec
        self.context = context
        self.paths = paths
        self.settings = AttentionSettings(context.lengths, spec.scale, spec.window, spec.softcap)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        self.kernels = kernels_for(x, self.spec.input_norm.weight)
        dropout = any(path is not None and path.dropout > 0.0 for own in self.paths for path in own)
        self.random = Randomness(x.device, 3 if dropout and self.context.recompute else 0)
        self.heads = heads = self._run_heads()
        self.attended = _with_extra_columns(x, self.spec.o.group)
        out = self._heads_of_output(self.attended)
        self.attention_state = attention_forward(heads.q, heads.k, heads.v, self.settings, out)
        self.middle = middle = self._run_middle()
        self.gate = gate = self._run_gate(middle.h)
        y, self.end = self._run_end(middle.h, gate)
        return y

    def free(self, recompute: Recompute) -> None:
        """Frees what `backward` recomputes: gate and up, or all but x, attention's output and rank-sized products."""
        assert self.gate is not None
        self.context.pool.give(self.gate.gate_up)
        self.gate = None
        if recompute != "selective":
            self.heads = self.middle = None
            self.end = self.end if self.end and self.end.is_small() else None

    def backward(self, grad: torch.Tensor, wants_dx: bool) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        middle, self.middle = self.middle, None
        if middle is None:
            with self.random.replay(1):
                middle = self._run_middle()
        gate, self.gate, end = self.gate, None, self.end
        if gate is None:
            with self.random.replay(2):
                gate = self._run_gate(middle.h)
                end = end or self._run_end(middle.h, gate)[1]
        assert end is not None
        dh, mlp_grads = self._mlp_backward(grad, middle.h, gate, end)
        self.context.pool.give(gate.gate_up)
        del gate
        dattended, o_grads = self._output_backward(dh, middle)
        del middle
        heads, self.heads = self.heads, None
        if heads is None:
            with self.random.replay(0):
                heads = self._run_heads()
        dx, qkv_grads = self._attention_backward(dh, dattended, heads, wants_dx)
        return dx, qkv_grads + o_grads + mlp_grads

    def _run_heads(self) -> _Heads:
        spec, x, (d_qkv, *_) = self.spec, self.x, self.paths
        self.random.mark(0)
        x_ext = _with_extra_columns(x, spec.qkv.group)
        input_scale = self._norm(spec.input_norm, x, x_ext[:, : x.shape[1]])
        qkv, state = spec.qkv.group.forward(x_ext, d_qkv)
        state = _own_products(state)
        if state.scaled is not None and spec.head_norms is None:
            state.scaled = state.scaled.clone()  # queries and keys are rotated in place below
        q, k, v = self._split(qkv)
        raw, raw_scales = (), ()
        if spec.head_norms is not None:
            raw = (q, k)
            normed = [self._norm_heads(norm, heads) for norm, heads in zip(spec.head_norms, raw, strict=True)]
            (q, k), raw_scales = zip(*normed, strict=True)
        for heads in (q, k):
            self.kernels.rotary_(heads, self.context.cosine, self.context.sine, False)
        return _Heads(q, k, v, raw, raw_scales, input_scale, state)

    def _run_middle(self) -> _Middle:
        spec, x, (_, d_o, *_) = self.spec, self.x, self.paths
        self.random.mark(1)
        if spec.attention_norm is None:
            h, state = spec.o.group.forward(self.attended, d_o, residual=x)
            return _Middle(h, None, None, state)
        out, state = spec.o.group.forward(self.attended, d_o)
        h = torch.empty_like(x)
        out_scale = self._norm(spec.attention_norm, out, h)
        return _Middle(h.add_(x), out, out_scale, state)

    def _run_gate(self, h: torch.Tensor) -> _Gate:
        spec, (_, _, d_gate_up, _) = self.spec, self.paths
        self.random.mark(2)
        h_ext = _with_extra_columns(h, spec.gate_up.group)
        scale = self._norm(spec.mlp_norm, h, h_ext[:, : h.shape[1]])
        buffer = self.context.pool.take(h, h.shape[0], spec.gate_up.group.out_features)
        gate_up, state = spec.gate_up.group.forward(h_ext, d_gate_up, out=buffer)
        return _Gate(gate_up, scale, _own_products(state))

    def _run_end(self, h: torch.Tensor, gate: _Gate) -> tuple[torch.Tensor, _End]:
        spec, (*_, d_down) = self.spec, self.paths
        product_ext = _with_extra_columns(h, spec.down.group)
        gate_rows, up_rows = gate.gate_up.chunk(2, 1)
        self.kernels.gated(gate_rows, up_rows, spec.activation, product_ext[:, : spec.down.group.in_features])
        if spec.output_norm is None:
            y, state = spec.down.group.forward(product_ext, d_down, h)
            return y, _End(None, None, _own_products(state))
        out, state = spec.down.group.forward(product_ext, d_down)
        y = torch.empty_like(h)
        out_scale = self._norm(spec.output_norm, out, y)
        return y.add_(h), _End(out, out_scale, _own_products(state))

    def _mlp_backward(
        self, grad: torch.Tensor, h: torch.Tensor, gate: _Gate, end: _End
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        spec, (_, _, d_gate_up, d_down) = self.spec, self.paths
        dy = grad
        if spec.output_norm is not None:
            assert end.out is not None and end.out_scale is not None
            dy = self._norm_backward(spec.output_norm, grad, end.out, end.out_scale)
        dy = spec.down.group.backward_scaling(dy, end.state)
        dproduct, gh_down = spec.down.group.backward_input(dy, end.state, d_down)
        state = gate.state
        dgate_up = gate.gate_up if state.scaled is None else gate.gate_up.clone()  # it may be `scaled` itself
        dgate, dup = dgate_up.chunk(2, 1)
        self.kernels.gated_backward_(dgate, dup, spec.activation, dproduct)
        product = dproduct
        down_grads = spec.down.group.backward_paths(dy, gh_down, product, end.state.h, end.state, d_down)
        dgate_up = spec.gate_up.group.backward_scaling(dgate_up, state)
        dnormed, gh = spec.gate_up.group.backward_input(dgate_up, state, d_gate_up)
        normed = torch.empty_like(h)
        self._norm(spec.mlp_norm, h, normed)
        grads = spec.gate_up.group.backward_paths(dgate_up, gh, normed, state.h, state, d_gate_up)
        dh = self._norm_backward(spec.mlp_norm, dnormed, h, gate.scale, residual=grad)
        return dh, grads + down_grads

    def _output_backward(self, dh: torch.Tensor, middle: _Middle) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Backpropagates through `o` and the norm after it, to attention's output (T, heads * head size)."""
        spec, (_, d_o, _, _), state = self.spec, self.paths, middle.state
        dy = dh
        if spec.attention_norm is not None:
            assert middle.out is not None and middle.out_scale is not None
            dy = self._norm_backward(spec.attention_norm, dh, middle.out, middle.out_scale)
        dy = spec.o.group.backward_scaling(dy, state)
        dattended, gh = spec.o.group.backward_input(dy, state, d_o)
        attended = self.attended[:, : spec.o.group.in_features]
        return dattended, spec.o.group.backward_paths(dy, gh, attended, state.h, state, d_o)

    def _attention_backward(
        self, dh: torch.Tensor, dattended: torch.Tensor, heads: _Heads, wants_dx: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        spec, (d_qkv, *_), state = self.spec, self.paths, heads.state
        dqkv = dh.new_empty(dh.shape[0], spec.qkv.group.out_features)
        dq, dk, dv = self._split(dqkv)
        attention_backward(
            heads.q,
            heads.k,
            heads.v,
            self._heads_of_output(self.attended),
            dattended.unflatten(1, (spec.heads, spec.head_size)),
            self.settings,
            self.attention_state,
            (dq, dk, dv),
        )
        for grad in (dq, dk):
            self.kernels.rotary_(grad, self.context.cosine, self.context.sine, True)
        if spec.head_norms is not None:
            for norm, grad, raw, scale in zip(spec.head_norms, (dq, dk), heads.raw, heads.raw_scales, strict=True):
                self._norm_heads_backward(norm, grad, raw, scale)
        dqkv = spec.qkv.group.backward_scaling(dqkv, state)
        dnormed, gh = spec.qkv.group.backward_input(dqkv, state, d_qkv, wants_dx)
        normed = torch.empty_like(self.x)
        self._norm(spec.input_norm, self.x, normed)
        grads = spec.qkv.group.backward_paths(dqkv, gh, normed, state.h, state, d_qkv)
        dx = None
        if wants_dx:
            dx = self._norm_backward(spec.input_norm, dnormed, self.x, heads.input_scale, residual=dh)
        return dx, grads

    def _split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Splits (T, out) into views of queries, keys and values, (T, heads, head size) each."""
        size = self.spec.head_size
        widths = [self.spec.heads * size, self.spec.key_heads * size, self.spec.key_heads * size]
        return tuple(part.unflatten(1, (-1, size)) for part in qkv.split(widths, 1))

    def _heads_of_output(self, out_ext: torch.Tensor) -> torch.Tensor:
        return out_ext[:, : self.spec.o.group.in_features].unflatten(1, (self.spec.heads, self.spec.head_size))

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
        """Replaces the gradient of the normalized heads by that of the heads before the norm, in place."""
        rows = raw.reshape(-1, raw.shape[-1])
        grad.copy_(self._norm_backward(norm, grad.reshape(rows.shape), rows, scale).view(grad.shape))


def _own_products(state: GroupState) -> GroupState:
    """Copies the state's `h`, which may be a view into the buffer of a product's input, so that it can be freed."""
    return replace(state, h=state.h.contiguous())


def _with_extra_columns(like: torch.Tensor, group: LinearGroup) -> torch.Tensor:
    """Allocates (T, in_features + extra_width): a group's input, and the columns for its rank-sized products."""
    buffer = like.new_empty(like.shape[0], group.in_features + group.extra_width)
    if group.in_features % 32:
        # oneDNN's AMX products read whole tiles and multiply the elements past the input's columns by zero, so
        # uninitialized memory there, which may be NaN, has to be cleared.
        buffer[:, group.in_features :].zero_()
    return buffer
