"""What a comparison ran on."""

from __future__ import annotations

import os
import platform
from typing import Any

import psutil
import torch

from lamina.version import __version__

# Cores kept busy by others above which a side's figures say little; a quiet machine keeps a few hundredths busy itself.
DISTURBED_CORES = 0.15


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": str(torch.cpu.get_capabilities().get("cpu_name", platform.processor())),
        "cores": psutil.cpu_count(logical=False),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": gpu,
        "torch": torch.__version__,
        "lamina": __version__,
    }
