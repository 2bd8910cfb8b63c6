"""FlashAttention over packed documents, on CUDA, with torch's variable-length kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch.nn.attention.varlen import varlen_attn


@dataclass
class FlashState:
    """The autograd graph of one forward.

    Attributes:
        inputs: Queries, keys and values, as leaves of the graph.
        out: Output, (T, H, D).
    """

    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    out: torch.Tensor


def supports(q: torch.Tensor, softcap: float | None) -> bool:
    """Whether the kernel supports these queries, (T, H, D)."""
    return q.device.type == "cuda" and q.dtype in (torch.bfloat16, torch.float16) and softcap is None


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float, window: int | None
) -> torch.Tensor:
    """Computes causal attention within documents, differentiably; shapes as in `ops.attention.attention_forward`."""
    ends, longest = _ends(tuple(lengths), q.device), max(lengths)
    # The kernel does not count the token itself.
    seen = (-1 if window is None else window - 1, 0)
    grouped = q.shape[1] != k.shape[1]
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=seen, enable_gqa=grouped)
    assert isinstance(out, torch.Tensor)
    return out


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], scale: float, window: int | None
) -> FlashState:
    """Computes the same with a graph of its own, for a later `backward`."""
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
    """Computes the documents' boundaries, int32 on the device; cached, since every layer of a step needs the same."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.pin_memory().to(device, non_blocking=True)
