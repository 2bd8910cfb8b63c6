"""The pointwise work between matrix products, each piece in one pass: norms, gates, rotary angles, cross entropy.

`native` (C++, on the CPU) is used where it can be, `compiled` (torch.compile of the plain ones) where it was asked for,
`plain` torch otherwise. `use_backend` insists on one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

from lamina.kernels import native, plain
from lamina.kernels.plain import GELU_TANH, SILU

BACKENDS = ("auto", "native", "compiled", "plain")

_chosen: ContextVar[str] = ContextVar("lamina_kernels", default="auto")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Chooses how the kernels are computed inside the block.

    Args:
        name: `auto` (native where it can run, compiled on CUDA, else plain), `native`, `compiled` or `plain`.
    """
    assert name in BACKENDS, name
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def available_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Those that can run on the device in the dtype, the fastest first."""
    has_compiler = native.unavailable() is None
    native_runs = has_compiler and native.supports(torch.empty(1, 1, dtype=dtype, device=device))
    compiled_runs = has_compiler or device.type == "cuda"
    return ["native"] * native_runs + ["compiled"] * compiled_runs + ["plain"]


def kernels_for(*tensors: torch.Tensor) -> Any:
    """The module whose functions take these tensors: `native`, `compiled` or `plain`."""
    name = _chosen.get()
    # On CUDA a kernel launch each for a dozen small operations would cost more than the warm-up of compiling them.
    if name == "compiled" or (name == "auto" and tensors[0].device.type == "cuda"):
        from lamina.kernels import compiled  # torch.compile is slow to import

        return compiled
    if name in ("auto", "native") and native.supports(*tensors) and native.unavailable() is None:
        return native
    assert name != "native", "the native kernels cannot take these tensors"
    return plain


def kernel_notes(device: torch.device, setting: str | bool) -> list[str]:
    """What a user should know about the kernels that `train.compile` gives on this device."""
    reason = native.unavailable() if device.type == "cpu" and setting == "auto" else None
    if reason is None:
        return []
    return [f"Plain torch takes the place of the compiled kernels, which is right but slower: {reason}."]


__all__ = ["BACKENDS", "GELU_TANH", "SILU", "available_backends", "kernel_notes", "kernels_for", "use_backend"]
