"""Memory pages of weights that are memory-mapped from their file."""

from __future__ import annotations

import mmap
import sys

import torch

from lamina.machine.pages import page_out


def drop_pages(tensor: torch.Tensor) -> None:
    """Evicts the pages of a memory-mapped `tensor` from memory, after it was copied elsewhere.

    A file is mapped as a whole, and stays mapped as long as one of its tensors is in use. Without this, every page that
    was read would stay in memory in addition to its copy. Reading the tensor again loads its pages again, so no data is
    lost. Does nothing for memory that is not mapped, nor on systems other than Linux.
    """
    # Only memory that torch allocated itself is resizable.
    allocated = tensor.untyped_storage().resizable()
    if tensor.device.type != "cpu" or allocated or not sys.platform.startswith("linux"):
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        page_out(start, end)
