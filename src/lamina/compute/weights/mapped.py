"""Memory pages of weights that are mapped from their file."""

from __future__ import annotations

import mmap
import sys

import torch

from lamina.machine.pages import page_out


def drop_pages(tensor: torch.Tensor) -> None:
    """Takes out of memory what of `tensor` is mapped from a file, once it was copied elsewhere.

    A file is mapped as a whole, and stays so as long as one of its tensors is in use: without this, each page that was
    ever read would count beside its copy. Reading the tensor again brings its pages back, so nothing can be lost.
    Does nothing for memory that is not mapped, nor on systems other than Linux.
    """
    # Torch can resize the memory that it allocated itself, and no other.
    allocated = tensor.untyped_storage().resizable()
    if tensor.device.type != "cpu" or allocated or not sys.platform.startswith("linux"):
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        page_out(start, end)
