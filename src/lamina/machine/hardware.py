"""What the hardware supports, as far as loading a model depends on it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import torch

from lamina.errors import ConfigError, Problem

# Number of matrix-product shapes whose code and workspace oneDNN caches, and torch's layer on top of it caches again.
# Their default of 1,024 each lets memory grow for hundreds of steps: by 2.4 GiB in 196 steps of SmolLM2-135M with AMX.
# A step over layers of the same kind has about 30 shapes.
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KEPT_PRODUCTS = 32

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# The device that was asked for; None for `auto`.
_asked: ContextVar[torch.device | None] = ContextVar("device", default=None)


def default_device() -> torch.device:
    """Returns the device that was asked for (`on_device`); else CUDA if available, and the CPU otherwise."""
    return _asked.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def on_device(name: str) -> Iterator[torch.device]:
    """Makes `default_device` that of a name inside the block, and CUDA's current device with it.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; `auto` leaves things as they are.

    Raises:
        ConfigError: There is no such device.
    """
    device = find_device(name)
    token = _asked.set(_asked.get() if device is None else device)
    indexed = device is not None and device.type == "cuda" and device.index is not None
    try:
        with torch.cuda.device(device) if indexed else nullcontext():
            yield default_device()
    finally:
        _asked.reset(token)


def use_device(name: str) -> None:
    """Makes `default_device` that of a name for the rest of the process; for a command line.

    Raises:
        ConfigError: There is no such device.
    """
    device = find_device(name)
    if device is not None:
        _asked.set(device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)


def find_device(name: str) -> torch.device | None:
    """Returns the device of a name; None for `auto`.

    Raises:
        ConfigError: There is no such device; the message says which there are.
    """
    if name == "auto":
        return None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if name in there:
        return torch.device(name)
    kind = re.sub(r":\d+$", "", name)
    if kind == "cuda" and not count:
        build = "this torch is built without CUDA" if torch.version.cuda is None else "no GPU is visible"
        message = f"{name!r} is not here: {build}."
    else:
        message = f"{name!r} is not a device of this machine."
    raise ConfigError(Problem("device", message, f"use auto, or one of {', '.join(there)}"))


def bound_product_cache() -> None:
    """Limits how many matrix-product shapes the process caches, unless the user has set a limit.

    torch reads the settings at the first product, so call this before loading a base model.
    """
    for cache in _CACHES:
        os.environ.setdefault(cache, str(_KEPT_PRODUCTS))


def multiplies_bf16_natively(device: torch.device) -> bool:
    """Returns whether bfloat16 matrix products run in hardware rather than by conversion to float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    return any(cpu_features().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


def cpu_features() -> dict[str, bool]:
    """Returns the CPU's instruction sets that matter for training, as torch sees them."""
    capabilities = torch.cpu.get_capabilities()
    return {name: value for name, value in capabilities.items() if isinstance(value, bool)}


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the dtype in which to hold the frozen base model.

    Args:
        wanted: `auto`, `bfloat16`, `float16` or `float32`. `auto` is bfloat16 where the hardware multiplies it, else
            float16 on GPUs, which all multiply it, and float32 elsewhere.
        device: The device that the base model will be on.
    """
    if wanted != "auto":
        return DTYPES[wanted]
    if multiplies_bf16_natively(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def explain_dtype(dtype: torch.dtype, device: torch.device) -> str:
    """Says why `auto` chose a dtype on a device."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type.upper()}"
    if dtype == torch.bfloat16:
        return f"dtype: bfloat16, which {where} multiplies in hardware."
    if dtype == torch.float16:
        return (
            f"dtype: float16, because {where} multiplies no bfloat16 in hardware. Its range is small, so the loss is "
            "scaled, and steps whose gradients overflow are skipped while the scale settles."
        )
    return (
        f"dtype: float32, because {where} multiplies no bfloat16 in hardware: there it takes half of the memory, but "
        "more time (dtype: bfloat16)."
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype without its prefix: `torch.bfloat16` -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")
