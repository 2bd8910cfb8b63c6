"""What this machine is, and its rate at matrix products."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import time

import torch
from tools.gpu.worker import Here

PACKAGES = ("transformers", "bitsandbytes", "triton", "peft", "trl", "unsloth", "flash-attn")


def facts(here: Here) -> None:
    """Versions, device, memory, compilers; and the rate of large products in each dtype."""
    tell = here.record.tell
    tell("python", platform.python_version())
    tell("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    for name in PACKAGES:
        try:
            tell(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            tell(name, "not installed")
    tell("compilers", ", ".join(name for name in ("g++", "gcc", "nvcc") if shutil.which(name)) or "none")
    if here.device == "cuda":
        _of_cuda(here)
    size = 256 if here.small else 8192
    for dtype in (torch.bfloat16,) if here.small else (torch.bfloat16, torch.float16, torch.float32):
        rate = _rate(size, dtype, here.device) / 1e12
        tell(f"TFLOP/s of a product of {size} in {str(dtype).removeprefix('torch.')}", rate)


def _of_cuda(here: Here) -> None:
    tell = here.record.tell
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    free, total = torch.cuda.mem_get_info(device)
    tell(
        "device", f"{torch.cuda.get_device_name(device)}, capability {major}.{minor}, {torch.cuda.device_count()} there"
    )
    tell("free GiB", free / 2**30)
    tell("total GiB", total / 2**30)
    tell("flash attention in torch", torch.backends.cuda.is_flash_attention_available())
    tell("float32 products", torch.get_float32_matmul_precision())
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv,noheader"]
        tell("driver, clock, power", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip())


def _rate(size: int, dtype: torch.dtype, device: str) -> float:
    """Operations per second, the best of a few."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
