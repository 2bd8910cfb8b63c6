"""Packs a mixture's experts: each expert's matrix as `quantization` says, in blocks along the last stored dimension.

bitsandbytes packs linear layers alone, so the packed experts of the cache are in a file of their own, under the names
of the model's parameters, with the name of a buffer of `PackedStack` after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import should_convert_module

from lamina.compute.ops.adapter import set_module
from lamina.compute.ops.experts import Experts, PackedExperts, read_experts
from lamina.compute.weights.experts import PackedStack
from lamina.compute.weights.packed import EightBitLinear, FourBitLinear, PackedLinear
from lamina.config.quantization import QuantizationConfig
from lamina.quantization.pack import pack_weight


def packable_experts(model: PreTrainedModel, kept: list[str]) -> dict[str, Experts]:
    """Finds the modules of experts that can be packed, by name.

    Args:
        model: The model; may be on the meta device.
        kept: Patterns for the names of modules that are not quantized.
    """
    found = {name: read_experts(module) for name, module in model.named_modules() if should_convert_module(name, kept)}
    return {name: experts for name, experts in found.items() if experts is not None}


def pack_stack(weight: torch.Tensor, transposed: bool, config: QuantizationConfig) -> PackedStack:
    """Packs the matrices of all experts, (experts, rows, columns)."""
    return PackedStack.of((pack_weight(matrix.contiguous(), config) for matrix in weight), transposed)


def save_stack(folder: Path, name: str, stack: PackedStack) -> None:
    """Saves the packed weights of one parameter, named `name` in the model."""
    tensors = {f"{name}.{key}": buffer.cpu().contiguous() for key, buffer in stack.named_buffers()}
    sizes = {"rows": str(stack.rows), "columns": str(stack.columns)}
    save_file(tensors, folder / f"experts-{name}.safetensors", metadata=sizes)


def without_weights(found: Mapping[str, Experts]) -> None:
    """Takes the stacked weights out of modules of experts, so that loading neither expects nor makes them."""
    for experts in found.values():
        module: Any = experts.module
        for name in (experts.first, experts.second):
            del module._parameters[name]
            setattr(module, name, None)
        module._is_hf_initialized = True


def put_back(model: PreTrainedModel, folder: Path, config: QuantizationConfig, dtype: torch.dtype) -> None:
    """Replaces the modules of experts whose weights are in files of their own by packed ones, without a copy.

    Args:
        model: The model without these weights.
        folder: Where the files are.
        config: How they were quantized.
        dtype: The dtype that weights are dequantized to.
    """
    for name, module in list(model.named_modules()):
        experts = read_experts(module)
        if experts is None or getattr(module, experts.first) is not None:
            continue
        keys = (experts.first, experts.second)
        stacks = {key: _read_stack(folder, f"{name}.{key}", experts.transposed, config, dtype) for key in keys}
        set_module(model, name, PackedExperts(experts, {key: stack.to(model.device) for key, stack in stacks.items()}))


def _read_stack(
    folder: Path, name: str, transposed: bool, config: QuantizationConfig, dtype: torch.dtype
) -> PackedStack:
    with safe_open(folder / f"experts-{name}.safetensors", "pt") as file:
        buffers = {key.removeprefix(f"{name}."): file.get_tensor(key) for key in list(file.keys())}
        rows, columns = (int(file.metadata()[size]) for size in ("rows", "columns"))
    one: PackedLinear
    if config.bits == 8:
        one = EightBitLinear(columns, rows, None, dtype, None, None)  # pyright: ignore[reportArgumentType]
    else:
        nested = SimpleNamespace(absmax=None, code=None) if "nested_absmax" in buffers else None
        state = SimpleNamespace(absmax=None, code=None, state2=nested, offset=None)
        state.blocksize, state.quant_type = config.blocksize, config.quant_type
        one = FourBitLinear(columns, rows, None, dtype, None, state)  # pyright: ignore[reportArgumentType]
    return PackedStack(one, buffers, transposed)
