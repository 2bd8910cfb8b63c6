"""The pointwise work between matrix products, each piece in one pass: norms, gates, rotary angles, cross entropy.

`native` (C++, on the CPU) is used where it can be, `compiled` (torch.compile of the plain ones) where it was asked for,
`plain` torch otherwise. `use_backend` insists on one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from lamina.compute.kernels import native, plain
from lamina.compute.kernels.build import load
from lamina.compute.kernels.plain import GELU_TANH, SILU
from lamina.compute.kernels.protocol import Kernels
from lamina.errors import ConfigError, KernelError, Problem
from lamina.progress import Notify

Backward = TypeVar("Backward", bound=Callable[..., Any])

BACKENDS = ("auto", "native", "compiled", "plain")

MOMENT_SECONDS = 1.0

_chosen: ContextVar[str] = ContextVar("lamina_kernels", default="auto")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Chooses how the kernels are computed inside the block, in this thread.

    A backward may run in a thread of autograd's own, where nothing was chosen: see `as_in_forward` and
    `checkpoint_contexts`.

    Args:
        name: `auto` (native where it can run, compiled on CUDA, else plain), `native`, `compiled` or `plain`.
    """
    if name not in BACKENDS:
        raise ValueError(f"no kernels are called {name!r}; use one of {', '.join(BACKENDS)}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen_backend() -> str:
    """What `use_backend` chose here; `auto` by default."""
    return _chosen.get()


def as_in_forward(backward: Backward) -> Backward:
    """For the backward of an `autograd.Function` that asks for kernels: it has the choice that its forward had.

    The forward keeps it: `ctx.backend = chosen_backend()`.
    """

    @functools.wraps(backward)
    def inside(ctx: Any, *grads: torch.Tensor) -> Any:
        with use_backend(ctx.backend):
            return backward(ctx, *grads)

    return inside  # pyright: ignore[reportReturnType]


def checkpoint_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """For `context_fn` of torch's checkpoint: what runs again in a backward has the choice that it had at first."""
    return contextlib.nullcontext(), _Again(chosen_backend())


class _Again(contextlib.AbstractContextManager[None]):
    """`use_backend`, as often as a backward is repeated."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> None:
        self._inside.enter_context(use_backend(self._name))

    def __exit__(self, *raised: object) -> None:
        self._inside.close()


def available_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Those that can run on the device in the dtype, the fastest first."""
    has_compiler = native.unavailable() is None
    native_runs = has_compiler and native.supports(torch.empty(1, 1, dtype=dtype, device=device))
    compiled_runs = has_compiler or device.type == "cuda"
    return ["native"] * native_runs + ["compiled"] * compiled_runs + ["plain"]


def kernels_for(*tensors: torch.Tensor) -> Kernels:
    """The module whose functions take these tensors: `native`, `compiled` or `plain`.

    Raises:
        KernelError: `native` was insisted on, and cannot take them.
    """
    name = _chosen.get()
    if name == "auto" and tensors[0].device.type == "cuda":
        # A kernel launch each for a dozen small operations would cost more than the warm-up of compiling them.
        name = "plain" if _compiled().problem("cuda") else "compiled"
    if name == "compiled":
        return _compiled()
    if name in ("auto", "native") and native.supports(*tensors) and native.unavailable() is None:
        return native
    if name == "native":
        raise KernelError(f"the native kernels cannot take these tensors ({native.unavailable() or 'their layout'})")
    return plain


def _compiled() -> Any:
    from lamina.compute.kernels import compiled  # torch.compile is slow to import

    return compiled


@dataclass(frozen=True)
class KernelState:
    """Which kernels a run has on this machine, and what its user should know of it.

    Attributes:
        backend: `native`, `compiled` (by torch.compile) or `plain`.
        reason: Why these are not the fastest, or not kept; else empty.
        fix: What helps against that.
    """

    backend: str
    reason: str = ""
    fix: str = ""

    @property
    def name(self) -> str:
        """As the manifest of a run has it."""
        return "plain" if self.backend == "plain" else "compiled"


def kernel_state(device: torch.device, setting: str | bool = "auto") -> KernelState:
    """What `train.compile` set to `setting` gives on this device.

    Raises:
        ConfigError: It asks for torch.compile, which does not work here.
    """
    if setting == "auto" and device.type == "cpu":
        library = load()
        return KernelState("plain" if library.loaded is None else "native", library.reason, library.fix)
    if setting is False or (setting == "auto" and device.type != "cuda"):
        return KernelState("plain")
    problem = _compiled().problem(device.type)
    if problem is None:
        return KernelState("compiled")
    if setting != "auto":
        raise ConfigError(
            Problem("train.compile", f"{setting} was asked for, but {problem}", "set it to auto or false")
        )
    return KernelState("plain", problem, "install what it names, or set train.compile to false")


def prepare_kernels(device: torch.device, setting: str | bool, notify: Notify) -> KernelState:
    """`kernel_state` for the first time, which may compile: says so if it takes longer than a moment."""
    said = threading.Timer(MOMENT_SECONDS, notify, ["Compiling the kernels for this machine ..."])
    said.start()
    try:
        return kernel_state(device, setting)
    finally:
        said.cancel()


def kernel_notes(device: torch.device, setting: str | bool) -> list[str]:
    """What a user should know about the kernels that `train.compile` gives on this device; raises as `kernel_state`."""
    state = kernel_state(device, setting)
    if not state.reason:
        return []
    slower = "Plain torch takes the place of the compiled kernels, and takes longer: "
    note = f"{slower if state.backend == 'plain' else ''}{state.reason}. Fix: {state.fix}."
    return [note[:1].upper() + note[1:]]


__all__ = [
    "BACKENDS",
    "GELU_TANH",
    "SILU",
    "KernelState",
    "as_in_forward",
    "available_backends",
    "checkpoint_contexts",
    "chosen_backend",
    "kernel_notes",
    "kernel_state",
    "kernels_for",
    "prepare_kernels",
    "use_backend",
]
