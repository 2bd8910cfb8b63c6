"""Kernels for the pointwise operations between matrix products: norms, gates, rotary angles, cross entropy.

There are three backends: `native` (C++, on the CPU) is used where it is supported, `compiled` (torch.compile of the
    plain
kernels) on CUDA or on request, and `plain` torch otherwise. `use_backend` forces one.
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
from lamina.compute.kernels.build import load_kernels
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
    """Chooses the kernels' backend inside the block, in this thread.

    Autograd may run a backward in a thread of its own, where no backend was chosen: see `as_in_forward` and
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
    """Returns the backend that `use_backend` chose; `auto` by default."""
    return _chosen.get()


def as_in_forward(backward: Backward) -> Backward:
    """Decorates the backward of an `autograd.Function`, so that it uses the backend of its forward.

    The forward has to save it: `ctx.backend = chosen_backend()`.
    """

    @functools.wraps(backward)
    def inside(ctx: Any, *grads: torch.Tensor) -> Any:
        with use_backend(ctx.backend):
            return backward(ctx, *grads)

    return inside  # pyright: ignore[reportReturnType]


def checkpoint_contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Makes the `context_fn` result for torch's checkpoint, so that recomputing uses the backend of the forward."""
    return contextlib.nullcontext(), _Again(chosen_backend())


class _Again(contextlib.AbstractContextManager[None]):
    """A reusable `use_backend`, since a backward may be repeated."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._inside = contextlib.ExitStack()

    def __enter__(self) -> None:
        self._inside.enter_context(use_backend(self._name))

    def __exit__(self, *raised: object) -> None:
        self._inside.close()


def available_backends(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Lists the backends that can run on the device in the dtype, fastest first."""
    has_compiler = native.unavailable() is None
    native_runs = has_compiler and native.supports(torch.empty(1, 1, dtype=dtype, device=device))
    compiled_runs = has_compiler or device.type == "cuda"
    return ["native"] * native_runs + ["compiled"] * compiled_runs + ["plain"]


def kernels_for(*tensors: torch.Tensor) -> Kernels:
    """Returns the backend for these tensors, a module: `native`, `compiled` or `plain`.

    Raises:
        KernelError: `use_backend("native")` is in effect, and the native kernels do not support them.
    """
    name = _chosen.get()
    if name == "auto" and tensors[0].device.type == "cuda":
        # Launching a dozen small operations one by one would cost more than compiling them once.
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
    """Which kernels a run uses on this machine, and why not faster ones.

    Attributes:
        backend: `native`, `compiled` (by torch.compile) or `plain`.
        reason: Why these are not the fastest, or why they cannot be cached; else empty.
        fix: How to fix that.
    """

    backend: str
    reason: str = ""
    fix: str = ""

    @property
    def name(self) -> str:
        """The name in a run's manifest: `plain` or `compiled`."""
        return "plain" if self.backend == "plain" else "compiled"


def kernel_state(device: torch.device, setting: str | bool = "auto") -> KernelState:
    """Finds the kernels that `train.compile: setting` selects on this device.

    Raises:
        ConfigError: The setting asks for torch.compile, which does not work here.
    """
    if setting == "auto" and device.type == "cpu":
        library = load_kernels()
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
    """Calls `kernel_state` for the first time, which may compile the kernels; notifies if that takes over a second."""
    said = threading.Timer(MOMENT_SECONDS, notify, ["Compiling the kernels for this machine ..."])
    said.start()
    try:
        return kernel_state(device, setting)
    finally:
        said.cancel()


def kernel_notes(device: torch.device, setting: str | bool) -> list[str]:
    """Lists notes for the user about the kernels that `train.compile` selects; raises the errors of `kernel_state`."""
    state = kernel_state(device, setting)
    if not state.reason:
        return []
    slower = "Plain torch is used instead of the compiled kernels, which is slower: "
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
