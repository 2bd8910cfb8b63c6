"""Fused parts of a decoder layer that cannot be fused as a whole: norms, rotary positions, the gated MLP and experts.

Linear layers, and any module that a method put in their place or around a part, are called as ordinary modules, so
every method works here. Less is saved for the backward than in transformers' own code, which keeps float32 copies in
every norm and several intermediate results of the rotary positions and the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lamina.compute.kernels import as_in_forward, chosen_backend, kernels_for
from lamina.compute.ops.attention import packed_attention_forward
from lamina.compute.ops.experts import Experts, run_experts
from lamina.compute.ops.shapes import in_shape

Forward = Callable[..., Any]


def norm_forward(module: nn.Module, eps: float, offset: float) -> Forward:
    """Makes the forward of an RMS norm, x / rms(x) (offset + weight) over the last dimension.

    A norm whose weight is trained, or has another dtype than x, runs its own forward.
    """
    own, weights = module.forward, module._parameters

    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = weights["weight"]
        assert weight is not None
        if weight.requires_grad or weight.dtype != x.dtype:
            return own(x)
        return _RmsNorm.apply(x, weight, eps, offset)  # pyright: ignore[reportReturnType]

    return forward


def gated_forward(mlp: Any, activation: int) -> Forward:
    """Makes the forward of a gated MLP, down(act(gate(x)) up(x))."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        product: Any = _Gated.apply(mlp.gate_proj(x), mlp.up_proj(x), activation)
        return mlp.down_proj(product)

    return forward


def experts_forward(experts: Experts) -> Forward:
    """Makes the forward of a mixture's frozen experts; where their weights are trained, their own forward runs."""
    own, parameters = experts.module.forward, experts.module._parameters

    def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        if any(each is not None and each.requires_grad for each in parameters.values()):
            return own(*args, **kwargs)
        return run_experts(experts, {}, *args, *kwargs.values())

    return forward


def attention_forward(attention: Any, call: Mapping[str, Any]) -> Forward:
    """Makes the forward of packed attention with rotary positions; with a cache or a mask the module's own forward
    runs.

    Args:
        attention: A module with `q_proj`, `k_proj`, `v_proj` and `o_proj`, and optionally `q_norm` and `k_norm`.
        call: Keyword arguments that the module passes to transformers' attention interface.
    """
    own = attention.forward
    settings = {name: call[name] for name in ("scaling", "sliding_window", "softcap") if name in call}

    def forward(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        lengths, special = kwargs.get("document_lengths"), ("attention_mask", "past_key_values")
        unpacked = lengths is None or hidden_states.shape[0] != 1
        if args or unpacked or any(kwargs.get(name) is not None for name in special):
            return own(hidden_states, *args, **kwargs)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (linear(hidden_states).unflatten(-1, (-1, attention.head_dim)) for linear in projections)
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        cosine, sine = (angles[0].contiguous() for angles in kwargs["position_embeddings"])
        q, k = (_Rotary.apply(heads, cosine, sine) for heads in (q, k))
        query, key, value = (heads.transpose(1, 2) for heads in (q, k, v))  # pyright: ignore[reportOptionalMemberAccess]
        out, _ = packed_attention_forward(
            attention,
            query,
            key,
            value,
            None,
            document_lengths=lengths,
            attention_prefix=kwargs.get("attention_prefix"),
            **settings,
        )
        return attention.o_proj(out.flatten(2)), None

    return forward


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(rows)
        scale = kernels_for(rows, weight).rms_norm(rows, weight, eps, offset, out)
        ctx.save_for_backward(x, weight, scale)
        ctx.offset, ctx.backend = offset, chosen_backend()
        return in_shape(out, *x.shape)

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        rows, grad = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, x.shape[-1])
        dx = torch.empty_like(rows)
        kernels_for(rows, weight, grad).rms_norm_backward(grad, rows, weight, scale, ctx.offset, None, dx)
        return dx.view(x.shape), None, None, None


class _Gated(torch.autograd.Function):
    """Computes act(gate) up, for gate and up (..., I)."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: int) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.backend = activation, chosen_backend()
        gate_rows, up_rows = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (gate, up))
        out = torch.empty(gate_rows.shape, dtype=gate.dtype, device=gate.device)
        kernels_for(gate_rows, up_rows).gated(gate_rows, up_rows, activation, out)
        return in_shape(out, *gate.shape)

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Cloned, because the kernel overwrites its inputs with gradients, and autograd owns these tensors.
        gate, up, product = (t.reshape(-1, t.shape[-1]).clone() for t in (*ctx.saved_tensors, grads[0]))
        kernels_for(gate, up, product).gated_backward_(gate, up, ctx.activation, product)
        return gate.view(grads[0].shape), up.view(grads[0].shape), None


class _Rotary(torch.autograd.Function):
    """Rotates heads (1, T, H, D) by the angles (T, R) of their tokens."""

    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        ctx.backend = chosen_backend()
        return _rotated(heads, cosine, sine, False)

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cosine, sine = ctx.saved_tensors
        return _rotated(grads[0], cosine, sine, True), None, None


def _rotated(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, inverse: bool) -> torch.Tensor:
    rotated = heads.clone(memory_format=torch.contiguous_format)
    kernels_for(rotated, cosine).rotary_(rotated[0], cosine, sine, inverse)
    return rotated
