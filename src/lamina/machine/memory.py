"""Memory of this process, or of the GPU if the model is on one."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch


def peak_bytes(device: torch.device) -> int:
    """Returns the peak memory so far, in bytes: allocated memory on CUDA, and otherwise this process's VmHWM.

    Linux keeps `ru_maxrss` across exec, so a process started by a larger one would report its parent's size. VmHWM
    belongs to the current program. `ru_maxrss` is used where there is no /proc.
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
    """Returns the memory in use now, in bytes, measured in the same way."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def available_bytes(device: torch.device) -> int:
    """Returns the free memory of the device, in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
