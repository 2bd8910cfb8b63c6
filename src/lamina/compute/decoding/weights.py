"""Describes frozen linear layers, norms and biases to the kernels; refuses what they cannot read."""

from __future__ import annotations

import torch
from torch import nn

from lamina.compute.decoding import layouts
from lamina.compute.decoding.layouts import DENSE, EIGHT_BITS, FOUR_BITS, address
from lamina.compute.fusion.spec import Norm
from lamina.compute.kernels import packed as kernels
from lamina.compute.weights.packed import INT8_STEP, EightBitLinear, FourBitLinear

Reason = str


def describe_linear(linear: nn.Module, dtype: torch.dtype) -> layouts.Weight | Reason:
    """Describes a bare linear layer; returns the reason if the kernels cannot read it.

    The module has to stay alive, with its weight where it is, for as long as the description is used.
    """
    bias: torch.Tensor | None = getattr(linear, "bias", None)
    if bias is not None and (bias.dtype != dtype or not bias.is_contiguous() or not bias.is_cpu):
        return f"a bias is {bias.dtype} on {bias.device}"
    if isinstance(linear, FourBitLinear | EightBitLinear):
        if not kernels.can_read(linear, dtype):
            return f"a packed weight of width {linear.in_features} is not one that the kernels read"
        weight = layouts.Weight(
            data=address(linear.packed),
            rows=linear.out_features,
            columns=linear.in_features,
            stride=linear.in_features,
            bias=address(bias),
        )
        if isinstance(linear, EightBitLinear):
            weight.storage, weight.scales, weight.step = EIGHT_BITS, address(linear.scales), INT8_STEP
            return weight
        weight.storage, weight.table, weight.blocksize = FOUR_BITS, address(linear.code), linear.blocksize
        if linear.nested_absmax is None:
            weight.absmax = address(linear.absmax)
        else:
            assert linear.nested_offset is not None
            weight.nested, weight.nested_code = address(linear.absmax), address(linear.nested_code)
            weight.nested_absmax, weight.nested_offset = address(linear.nested_absmax), float(linear.nested_offset)
        return weight
    dense = getattr(linear, "weight", None)
    if type(linear) is not nn.Linear or not isinstance(dense, torch.Tensor):
        return f"{type(linear).__name__} holds its weight in another way"
    if dense.dtype != dtype or not dense.is_cpu or dense.dim() != 2 or dense.stride(1) != 1:
        return f"a weight is {dense.dtype} on {dense.device} with strides {dense.stride()}"
    rows, columns = dense.shape
    return layouts.Weight(
        data=address(dense), rows=rows, columns=columns, stride=dense.stride(0), storage=DENSE, bias=address(bias)
    )


def describe_norm(norm: Norm | None, dtype: torch.dtype) -> layouts.Norm | Reason:
    """Describes an RMS norm, or its absence."""
    if norm is None:
        return layouts.Norm()
    if norm.weight.dtype != dtype or not norm.weight.is_contiguous() or not norm.weight.is_cpu:
        return f"a norm's weight is {norm.weight.dtype} on {norm.weight.device}"
    return layouts.Norm(weight=address(norm.weight), eps=norm.eps, offset=norm.offset)
