"""What the hardware supports, as far as loading a model depends on it."""

from __future__ import annotations

import os

import torch

# Number of matrix-product shapes whose code and workspace oneDNN caches, and torch's layer on top of it caches again.
# Their default of 1,024 each lets memory grow for hundreds of steps: by 2.4 GiB in 196 steps of SmolLM2-135M with AMX.
# A step over layers of the same kind has about 30 shapes.
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KEPT_PRODUCTS = 32

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def default_device() -> torch.device:
    """Returns CUDA if available, and the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    return any(cpu_features().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


def cpu_features() -> dict[str, bool]:
    """Returns the CPU's instruction sets that matter for training, as torch sees them."""
    capabilities = torch.cpu.get_capabilities()
    return {name: value for name, value in capabilities.items() if isinstance(value, bool)}


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the dtype in which to hold the frozen base model. Only who asks for float16 gets it.

    Args:
        wanted: `auto`, `bfloat16`, `float16` or `float32`.
        device: The device that the base model will be on.
    """
    if wanted == "auto":
        return torch.bfloat16 if multiplies_bf16_natively(device) else torch.float32
    return DTYPES[wanted]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name of a dtype without its prefix: `torch.bfloat16` -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")
