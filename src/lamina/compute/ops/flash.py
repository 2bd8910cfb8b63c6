"""Attention of packed documents by FlashAttention, on CUDA: torch's own kernel for sequences of different lengths."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.nn.attention.varlen import varlen_attn


@dataclass
class FlashState:
    """A forward whose backward torch's autograd knows.

    Attributes:
        inputs: Queries, keys and values as leaves.
        out: (T, H, D), computed from them.
    """

    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    out: torch.Tensor


def takes(q: torch.Tensor, softcap: float | None) -> bool:
    """Whether the kernel can take these queries, (T, H, D)."""
    return q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16) and softcap is None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float, window: int | None
) -> torch.Tensor:
    """Causal attention within documents, differentiable; shapes as in `ops.attention.attention_forward`."""
    ends, longest = _ends(tuple(lengths), q.device), max(lengths)
    # The kernel counts the tokens seen besides one's own.
    seen = (-1 if window is None else window - 1, 0)
    grouped = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=seen, enable_gqa=grouped)
    assert isinstance(out, torch.Tensor)
    return out


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float, window: int | None
) -> FlashState:
    """The same outside of autograd, with a state for `backward`."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        out = attend(leaves[0], leaves[1], leaves[2], lengths, scale, window)
    return FlashState((leaves[0], leaves[1], leaves[2]), out)


def backward(state: FlashState, grad: torch.Tensor, results: tuple[torch.Tensor, ...]) -> None:
    """Writes the gradients of queries, keys and values."""
    for result, gradient in zip(results, torch.autograd.grad(state.out, state.inputs, grad), strict=True):
        result.copy_(gradient)


@functools.lru_cache(maxsize=16)
def _ends(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Where documents begin and end, int32 on the device; every layer of a step asks for the same."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.pin_memory().to(device, non_blocking=True)
