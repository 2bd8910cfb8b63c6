"""A decoder layer that cannot be fused as a whole, part by part: norms, rotary positions and the gated unit.

Linears, and whatever a method has put in their place or around a part, are called as the modules that they are, so any
method is right here. What is saved is less than in transformers' own code, which keeps float32 copies in every norm and
several intermediate results of the rotary positions and the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lamina.compute.kernels import as_in_forward, chosen_backend, kernels_for
from lamina.compute.ops.attention import packed_attention_forward
from lamina.compute.ops.shapes import in_shape

Forward = Callable[..., Any]


def norm_forward(module: nn.Module, eps: float, offset: float) -> Forward:
    """An RMS norm x / rms(x) (offset + weight) over the last dimension; one whose weight is trained stays as it is."""
    own, weights = module.forward, module._parameters

    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = weights["weight"]
        assert weight is not None
        if weight.requires_grad or weight.dtype != x.dtype:
            return own(x)
        return _RmsNorm.apply(x, weight, eps, offset)  # pyright: ignore[reportReturnType]

    return forward


def gated_forward(mlp: Any, activation: int) -> Forward:
    """down(act(gate(x)) up(x))."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        product: Any = _Gated.apply(mlp.gate_proj(x), mlp.up_proj(x), activation)
        return mlp.down_proj(product)

    return forward


def attention_forward(attention: Any, call: Mapping[str, Any]) -> Forward:
    """Packed attention with its rotary positions; with a cache or a mask the module's own forward answers.

    Args:
        attention: With `q_proj`, `k_proj`, `v_proj`, `o_proj`, and perhaps `q_norm` and `k_norm`.
        call: What it gives to transformers' attention interface besides tensors.
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
    """Gate and up, (..., I) each -> act(gate) up."""

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
        # Copies, because the kernel writes the gradients over them and they belong to others.
        gate, up, product = (t.reshape(-1, t.shape[-1]).clone() for t in (*ctx.saved_tensors, grads[0]))
        kernels_for(gate, up, product).gated_backward_(gate, up, ctx.activation, product)
        return gate.view(grads[0].shape), up.view(grads[0].shape), None


class _Rotary(torch.autograd.Function):
    """Heads (1, T, H, D), turned by the angles (T, R) of their tokens."""

    @staticmethod
    def forward(ctx: Any, heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, sine)
        ctx.backend = chosen_backend()
        return _turned(heads, cosine, sine, False)

    @staticmethod
    @as_in_forward
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        cosine, sine = ctx.saved_tensors
        return _turned(grads[0], cosine, sine, True), None, None


def _turned(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, inverse: bool) -> torch.Tensor:
    turned = heads.clone(memory_format=torch.contiguous_format)
    kernels_for(turned, cosine).rotary_(turned[0], cosine, sine, inverse)
    return turned
