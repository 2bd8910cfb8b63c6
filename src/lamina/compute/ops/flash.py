"""FlashAttention over packed documents, on CUDA, with torch's kernel for variable-length sequences.

`torch.nn.attention.varlen.varlen_attn` is its public interface, whose backward only autograd can call. A fused layer is
an autograd function itself, so both operations behind that interface are called here, with the arguments that it passes
to them (a test checks their signatures).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

# What the kernel is built for: heads of whole 16-byte vectors, up to this size, on GPUs from Ampere on.
LARGEST_HEAD, HEAD_STEP = 256, 8
OLDEST_GPU = (8, 0)


@dataclass(frozen=True)
class FlashState:
    """What a backward needs in addition to its forward's input and output.

    Attributes:
        lse: Logsumexp of the scores, (H, T), float32.
        rng: Two tensors of the kernel's random state, which are not read without dropout.
    """

    lse: torch.Tensor
    rng: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class FlashCall:
    """Arguments other than tensors: document lengths, the scale of scores, the window (the token itself included)."""

    lengths: list[int]
    scale: float
    window: int | None

    def arguments(self, device: torch.device) -> tuple[Any, ...]:
        """Lists them in the operations' order: ends twice, longest document twice, dropout, whether causal."""
        ends, longest = _ends(tuple(self.lengths), device), max(self.lengths)
        return ends, ends, longest, longest, 0.0, self.window is None

    def options(self) -> dict[str, Any]:
        """Returns the keyword arguments. The kernel's window does not count the token itself."""
        seen = -1 if self.window is None else self.window - 1
        return {"scale": self.scale, "window_size_left": seen, "window_size_right": 0}


def supports(q: torch.Tensor, v: torch.Tensor, softcap: float | None) -> bool:
    """Whether the kernel supports queries (..., D), keys like them, and values (..., E)."""
    head = q.shape[-1]
    return (
        q.device.type == "cuda"
        and q.dtype in (torch.bfloat16, torch.float16)
        and softcap is None
        and head == v.shape[-1]
        and head % HEAD_STEP == 0
        and head <= LARGEST_HEAD
        and runs_on(q.device)
    )


@functools.cache
def runs_on(device: torch.device) -> bool:
    """Whether torch was built with the kernel, and the GPU is new enough for it."""
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= OLDEST_GPU


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: FlashCall) -> tuple[torch.Tensor, FlashState]:
    """Causal attention within documents: (T, H, D), and a state for `backward`.

    Shapes are those of `ops.attention.attention_forward`.
    """
    out, lse, *rng, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, *call.arguments(q.device), False, **call.options()
    )
    return out, FlashState(lse, (rng[0], rng[1]))


def backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    grad: torch.Tensor,
    call: FlashCall,
    state: FlashState,
) -> tuple[torch.Tensor, ...]:
    """Gradients of queries, keys and values, the same bits in every run."""
    with _same_bits():
        return torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, state.lse, *call.arguments(q.device), *state.rng, **call.options()
        )


@contextlib.contextmanager
def _same_bits() -> Iterator[None]:
    """Asks torch for the backward that sums in a fixed order, without which a resumed run is not the unbroken one."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


@functools.lru_cache(maxsize=16)
def _ends(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Computes the documents' boundaries, int32 on the device; cached, since every layer of a step needs the same."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.pin_memory().to(device, non_blocking=True)
