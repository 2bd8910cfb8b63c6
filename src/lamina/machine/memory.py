"""Memory of this process, or of the GPU where the model is on one."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: allocated on CUDA, else the resident size of this process (VmHWM).

    Linux keeps `ru_maxrss` across exec, so a child that is started by a larger process reports its parent's size;
    VmHWM belongs to the program that runs. Where there is no /proc, `ru_maxrss` has to do.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def current_bytes(device: torch.device) -> int:
    """Memory right now, counted in the same way."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def available_bytes(device: torch.device) -> int:
    """Free memory where the model is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
