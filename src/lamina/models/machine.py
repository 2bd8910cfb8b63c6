"""What the machine can do, as far as loading a model depends on it."""

from __future__ import annotations

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def default_device() -> torch.device:
    """CUDA where it is there, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def multiplies_bf16_natively(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware rather than by conversion to float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return any(cpu_features().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16"))


def cpu_features() -> dict[str, bool]:
    """The CPU's instruction sets that matter for training, as torch sees them."""
    capabilities = torch.cpu.get_capabilities()
    return {name: value for name, value in capabilities.items() if isinstance(value, bool)}


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The dtype to hold the frozen base in. Never float16.

    Args:
        wanted: `auto`, `bfloat16` or `float32`.
        device: Where the base will be.
    """
    if wanted == "auto":
        return torch.bfloat16 if multiplies_bf16_natively(device) else torch.float32
    return DTYPES[wanted]


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` -> `bfloat16`."""
    return str(dtype).removeprefix("torch.")
