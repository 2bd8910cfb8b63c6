"""Memory pages: those of weights that are mapped from their file, and those that a step leaves to the next one."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import sys
from collections.abc import Iterator

import torch

# <linux/mman.h>; since Linux 5.4.
_MADV_PAGEOUT = 21

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# Up to here glibc raises its thresholds by itself as a program runs.
_LARGEST_ADAPTED = 32 << 20


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
        # An older kernel refuses, and then the pages stay.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(_MADV_PAGEOUT))


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Has the process keep memory that is freed inside the block, and give it back at the end.

    Else every large tensor of a training step is memory fresh from the system, which comes in pages of 4 KB that are
    zeroed one by one: about 60,000 of them for a step of 2,000 tokens through SmolLM2-135M. Works with glibc; elsewhere
    nothing changes. The setting is the whole process's.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_ADAPTED)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_ADAPTED)
        libc.malloc_trim(0)
