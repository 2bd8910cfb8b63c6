"""Tensors that say they are on CUDA and hold no numbers, on a machine that has none.

torch follows dtypes, shapes and devices through every operation, with the rules that CUDA has for them. What is found
so is what a GPU would stumble over first: a tensor of the CPU among those of the device, an operation's wrong arguments
or dtypes, a number that is read back in the middle of the hot path (which makes the CPU wait).

A build of torch without CUDA refuses such tensors wherever it asks which device is current. `pretend` gives it an
answer (`fake_cuda.cpp`), for the rest of the process: so this is for processes of their own. torch's autograd engine
still does not run without a device, so an autograd function's backward follows right after its forward, on a gradient
like its result.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import bitsandbytes.functional
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lamina.compute.fusion import layer_parts, recognize
from lamina.compute.fusion.spec import Norm
from lamina.compute.kernels import SILU
from lamina.compute.ops import flash

DEVICE = torch.device("cuda", 0)
SOURCE = Path(__file__).with_suffix(".cpp")


def pretend(folder: Path) -> None:
    """Compiles and loads what answers for CUDA, unless this torch has it.

    Args:
        folder: Where to.
    """
    if torch.cuda.is_available():
        return
    home, library = Path(torch.__file__).parent, folder / "fake_cuda.so"
    if not library.exists():
        where = ["-I", home / "include", "-L", home / "lib", "-lc10"]
        subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", SOURCE, *where, "-o", library], check=True)
    ctypes.CDLL(str(library)).pretend_cuda()


@dataclass
class Seen:
    """Which autograd functions ran, by name, and `flash` for each forward of FlashAttention."""

    functions: list[str] = field(default_factory=list)


class _Context:
    """What an autograd function's forward and backward share."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.needs_input_grad = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in arguments]
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        self.saved_tensors = tensors


@contextlib.contextmanager
def fake_cuda() -> Iterator[Seen]:
    """Inside, nothing is computed, and a tensor may be on CUDA."""
    seen = Seen()

    def both_ways(function: Any, *arguments: Any) -> Any:
        context = _Context(arguments)
        result = function.forward(context, *arguments)
        assert result.device == DEVICE, f"{function.__name__} gives a result on {result.device}"
        grads = function.backward(context, torch.empty_like(result))
        for number, (argument, grad) in enumerate(zip(arguments, grads, strict=True)):
            if grad is not None:
                place = f"{function.__name__}'s gradient of argument {number}"
                assert (grad.shape, grad.device) == (argument.shape, argument.device), place
        seen.functions.append(function.__name__)
        return result

    def flash_forward(*arguments: Any) -> Any:
        seen.functions.append("flash")
        return forward(*arguments)

    forward = flash.forward

    def norm(module: Any, like: torch.Tensor) -> Norm:
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        assert eps is not None
        return Norm(module.weight.detach(), eps, 1.0 if "Gemma" in type(module).__name__ else 0.0)

    patches = [
        mock.patch.object(torch.autograd.Function, "apply", classmethod(both_ways)),
        mock.patch.object(torch.nn.Module, "_apply", _apply),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(torch.cuda, "get_rng_state", lambda device: torch.empty(16, dtype=torch.uint8, device="cpu")),
        mock.patch.object(torch.cuda, "set_rng_state", lambda state, device: None),
        mock.patch.object(flash, "runs_on", lambda device: True),
        mock.patch.object(flash, "forward", flash_forward),
        # What computes numbers, compares them, or asks where they lie in memory.
        mock.patch.object(bitsandbytes.functional, "create_dynamic_map", lambda **settings: torch.empty(256)),
        mock.patch.dict(bitsandbytes.functional.name2qmap, clear=True),
        mock.patch.object(recognize, "read_norm", norm),
        mock.patch.object(layer_parts, "read_norm", norm),
        mock.patch.object(layer_parts, "read_activation", lambda function: SILU),
        mock.patch.object(layer_parts, "_obstacle", lambda *arguments: None),
        mock.patch.object(recognize, "layer_difference", lambda *arguments: None),
        mock.patch.object(recognize, "kept_generators", lambda device: contextlib.nullcontext()),
    ]
    flash._ends.cache_clear()
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(torch.no_grad())
        mode = FakeTensorMode(allow_non_fake_inputs=False)
        mode.may_turn_const = lambda t: False  # or what is known already would really be computed, on the device
        stack.enter_context(mode)
        yield seen
    flash._ends.cache_clear()


def _apply(module: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """A module's own way of moving puts what was moved into the old tensors, which these do not allow."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = torch.nn.Parameter(fn(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else fn(buffer)
    return module
