"""The plain kernels through torch.compile: fused without a kernel of ours, after a warm-up of seconds to minutes."""

from __future__ import annotations

import torch

from lamina.kernels import plain

# Compiled lazily by torch, at the first call; one graph serves every number of tokens.
rms_norm = torch.compile(plain.rms_norm, dynamic=True)
rms_norm_backward = torch.compile(plain.rms_norm_backward, dynamic=True)
gated = torch.compile(plain.gated, dynamic=True)
gated_backward_ = torch.compile(plain.gated_backward_, dynamic=True)
rotary_ = torch.compile(plain.rotary_, dynamic=True)
scale_columns_ = torch.compile(plain.scale_columns_, dynamic=True)
scale_columns_backward = torch.compile(plain.scale_columns_backward, dynamic=True)
cross_entropy_ = torch.compile(plain.cross_entropy_, dynamic=True)
# Every forward has another key, and a compiled one would be compiled for each.
dropped = plain.dropped
add_dropped_ = plain.add_dropped_
narrow_product = plain.narrow_product  # a matrix product, which torch.compile would leave as it is
