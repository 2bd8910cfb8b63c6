"""The plain kernels compiled by torch.compile, which takes seconds to minutes at the first call."""

from __future__ import annotations

import functools

import torch

from lamina.compute.kernels import plain

# Compiled lazily by torch, at the first call; one graph serves every number of tokens.
rms_norm = torch.compile(plain.rms_norm, dynamic=True)
rms_norm_backward = torch.compile(plain.rms_norm_backward, dynamic=True)
gated = torch.compile(plain.gated, dynamic=True)
gated_backward_ = torch.compile(plain.gated_backward_, dynamic=True)
rotary_ = torch.compile(plain.rotary_, dynamic=True)
scale_columns_ = torch.compile(plain.scale_columns_, dynamic=True)
scale_columns_backward = torch.compile(plain.scale_columns_backward, dynamic=True)
cross_entropy_ = torch.compile(plain.cross_entropy_, dynamic=True)
# Not compiled: every forward has another key, and torch.compile would recompile for each.
dropped = plain.dropped
add_dropped_ = plain.add_dropped_
narrow_product = plain.narrow_product  # a matrix product, which torch.compile would not change


@functools.cache
def problem(device: str) -> str | None:
    """Finds out why torch.compile does not work on a type of device, by trying it once; None if it works.

    It needs a C++ compiler on the CPU, and Triton with a C compiler on CUDA.
    """
    try:
        scale_columns_(torch.ones(2, 3, device=device), torch.ones(3, device=device))
    except Exception as error:  # of any kind: torch.compile does not work
        lines = str(error).strip().splitlines()
        return f"torch.compile does not work here ({lines[0][:300] if lines else type(error).__name__})"
    return None
