"""Weights in 4 or 8 bits, in lamina's own modules: quantized by bitsandbytes, dequantized by its kernels or ours.

The modules of bitsandbytes are not used: on the CPU they repack a weight in evaluation mode, after which it can neither
    be
trained on nor dequantized. Here a packed weight is never changed: a product dequantizes it into the compute dtype, and
the backward dequantizes it again instead of keeping it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from lamina.compute.kernels import packed as kernels
from lamina.compute.weights.correction import Correction
from lamina.compute.weights.frozen import FrozenLinear
from lamina.errors import ConfigError, Problem

# Scales per block when the scales are quantized too (double quantization).
NESTED_BLOCK = 256

# 1 / 127, rounded as bitsandbytes rounds it: the integers of LLM.int8 range from -127 to 127.
INT8_STEP = 7.874015718698502e-3


def bitsandbytes() -> Any:
    """Imports `bitsandbytes.functional`.

    Raises:
        ConfigError: bitsandbytes is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        missing = (error.name or "").partition(".")[0] == "bitsandbytes"
        message = "a quantized base needs the package bitsandbytes, which " + (
            "is not installed." if missing else f"cannot be loaded: {error}"
        )
        raise ConfigError(Problem("quantization", message, "pip install 'lamina[bnb]'")) from error


def quantize_4bit(
    weight: torch.Tensor, quant_type: str, double_quant: bool, blocksize: int
) -> tuple[torch.Tensor, Any]:
    """Computes the same as `bitsandbytes.functional.quantize_4bit`, with our own kernel if it supports the weight.

    Args:
        weight: Contiguous weight.
        quant_type: `nf4` or `fp4`.
        double_quant: Whether the scales are quantized too.
        blocksize: Weights that share a scale.

    Returns:
        The packed weight, uint8 (elements / 2, 1), and its `QuantState`.
    """
    functional = bitsandbytes()
    if not kernels.can_pack(weight, blocksize):
        return functional.quantize_4bit(
            weight, blocksize=blocksize, compress_statistics=double_quant, quant_type=quant_type
        )
    code = functional.get_4bit_type(quant_type, device=weight.device)
    order = torch.argsort(code)
    bounds = (code[order[:-1]] + code[order[1:]]) / 2
    packed, scales = kernels.pack_4bit(weight, blocksize, bounds, order.to(torch.uint8))
    settings = {"shape": weight.shape, "dtype": weight.dtype, "blocksize": blocksize, "code": code}
    if not double_quant:
        return packed, functional.QuantState(absmax=scales, quant_type=quant_type, **settings)
    offset = scales.mean()
    absmax, nested = functional.quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK)
    state = functional.QuantState(absmax=absmax, quant_type=quant_type, offset=offset, state2=nested, **settings)
    return packed, state


class PackedLinear(nn.Module, ABC):
    """A linear layer whose weight W (out_features, in_features) is stored packed and never trained.

    Attributes:
        in_features: Width of the input.
        out_features: Width of the output.
        dtype: The dtype that W is dequantized to.
        bias: Frozen bias (out_features,), or None.
        correction: Where LoftQ's A and B for this weight are stored; None without LoftQ.
        divisible: Names of the tensors that grow with the weight, which can be divided over processes.
    """

    divisible: ClassVar[tuple[str, ...]] = ("packed", "absmax", "nested_absmax", "scales")

    packed: torch.Tensor
    bias: nn.Parameter | None
    correction: Correction | None = None

    def __init__(self, in_features: int, out_features: int, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(dtype), requires_grad=False)

    def dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Dequantizes W to a new tensor (out_features, in_features), by default in the compute dtype."""
        out = torch.empty(self.out_features, self.in_features, dtype=dtype or self.dtype, device=self.packed.device)
        self.dequantize_into(out)
        return out

    @abstractmethod
    def dequantize_into(self, out: torch.Tensor) -> None:
        """Dequantizes W into `out` (out_features, in_features), in the dtype of `out`, whose rows may be strided."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Computes x W^T, for x (T, in_features)."""
        return F.linear(x, self.dense(x.dtype))

    @property
    def weight(self) -> torch.Tensor:
        """An empty tensor in the compute dtype, for code that reads a layer's dtype or device from its weight."""
        return torch.empty(0, dtype=self.dtype, device=self.packed.device)

    def packed_bytes(self) -> int:
        """Bytes of the packed weight and its scales."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes (..., in_features) -> (..., out_features), without keeping a dense weight for the backward."""
        return packed_matmul(x, self, self.bias)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedLinear:
        # A change of dtype changes the dtype that W is dequantized to, not the stored scales.
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            self._buffers[name] = buffer.to(self.get_buffer(name).device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return self


class FourBitLinear(PackedLinear):
    """A weight in 4 bits, NF4 or FP4: two weights per byte, each one of sixteen values times its block's scale.

    Attributes:
        packed: The packed weight, uint8, (in_features * out_features / 2, 1).
        absmax: One scale per block: float32, or uint8 with double quantization.
        code: The sixteen values, (16,), float32.
        nested_absmax, nested_code, nested_offset: How the scales are quantized, float32; None without double
            quantization.
        blocksize: Weights that share a scale.
        quant_type: `nf4` or `fp4`.
    """

    absmax: torch.Tensor
    code: torch.Tensor
    nested_absmax: torch.Tensor | None
    nested_code: torch.Tensor | None
    nested_offset: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        packed: torch.Tensor,
        state: Any,
    ) -> None:
        """
        Args:
            in_features: Width of the input.
            out_features: Width of the output.
            bias: (out_features,), or None.
            dtype: The dtype that W is dequantized to.
            packed: The packed weight, uint8.
            state: Its `QuantState` from bitsandbytes.
        """
        super().__init__(in_features, out_features, bias, dtype)
        self.blocksize, self.quant_type = state.blocksize, state.quant_type
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", state.absmax)
        self.register_buffer("code", state.code)
        nested = state.state2
        self.register_buffer("nested_absmax", nested.absmax if nested else None)
        self.register_buffer("nested_code", nested.code if nested else None)
        self.register_buffer("nested_offset", state.offset if nested else None)

    @classmethod
    def pack(
        cls, linear: nn.Linear, quant_type: str = "nf4", double_quant: bool = True, blocksize: int = 64
    ) -> FourBitLinear:
        """Quantizes an ordinary linear layer."""
        packed, state = quantize_4bit(linear.weight.detach().contiguous(), quant_type, double_quant, blocksize)
        return cls(linear.in_features, linear.out_features, linear.bias, linear.weight.dtype, packed, state)

    def dequantize_into(self, out: torch.Tensor) -> None:
        if kernels.can_read(self, out.dtype):
            kernels.dequantize_4bit(self, out)
        else:
            out.copy_(self._dequantized_by_bitsandbytes(out.dtype))

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if kernels.can_multiply(x, self):
            return kernels.multiply_4bit(x, self)
        return super().product(x)

    def scales(self) -> torch.Tensor:
        """Computes the scale of each block, (blocks,), float32."""
        if self.nested_absmax is None:
            return self.absmax
        nested = {"absmax": self.nested_absmax, "code": self.nested_code, "blocksize": NESTED_BLOCK}
        return bitsandbytes().dequantize_blockwise(self.absmax, **nested) + self.nested_offset

    def choose(self, numbers: torch.Tensor) -> None:
        """Replaces the packed weight, and keeps the scales.

        Args:
            numbers: Indices into `code`, (out_features, in_features), uint8.
        """
        flat = numbers.flatten()
        self.packed = (flat[0::2] << 4 | flat[1::2]).view(self.packed.shape)

    def _dequantized_by_bitsandbytes(self, dtype: torch.dtype) -> torch.Tensor:
        """Dequantizes W with the kernels of bitsandbytes."""
        absmax = self.scales()
        # Reshaped to one block per row: on the CPU the kernel starts a new block at every row, so a weight whose rows
        # are not a whole number of blocks would be dequantized with the scales of other blocks.
        weights = self.out_features * self.in_features
        shape = (1, weights) if weights % self.blocksize else (weights // self.blocksize, self.blocksize)
        flat = torch.ops.bitsandbytes.dequantize_4bit.default(
            self.packed, absmax, self.blocksize, self.quant_type, shape, dtype
        )
        return flat.view(self.out_features, self.in_features)


class EightBitLinear(PackedLinear):
    """A weight in 8 bits (LLM.int8), with one scale per row: W = packed * scales / 127.

    Attributes:
        packed: The packed weight, int8, (out_features, in_features).
        scales: The largest magnitude of each row, float32, (out_features,).
    """

    scales: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        packed: torch.Tensor,
        scales: torch.Tensor,
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)

    @classmethod
    def pack(cls, linear: nn.Linear) -> EightBitLinear:
        """Quantizes an ordinary linear layer, by way of float16, as bitsandbytes does."""
        packed, scales, _ = bitsandbytes().int8_vectorwise_quant(linear.weight.detach().to(torch.float16))
        return cls(linear.in_features, linear.out_features, linear.bias, linear.weight.dtype, packed, scales)

    def dequantize_into(self, out: torch.Tensor) -> None:
        if kernels.can_read(self, out.dtype):
            kernels.dequantize_8bit(self, INT8_STEP, out)
        else:
            out.copy_(self.packed * self.scales[:, None] * INT8_STEP)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if kernels.can_multiply(x, self):
            return kernels.multiply_8bit(x, self, INT8_STEP)
        return super().product(x)


def unpack(model: nn.Module) -> int:
    """Replaces every packed linear layer by an ordinary one with the dequantized weight, in its compute dtype.

    Returns:
        The number of replaced layers.
    """
    packed = [(name, module) for name, module in model.named_modules() if isinstance(module, PackedLinear)]
    for name, module in packed:
        dense: Any = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        dense.weight, dense.bias = nn.Parameter(module.dense(), requires_grad=False), module.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, dense)
    return len(packed)


def packed_matmul(x: torch.Tensor, base: PackedLinear, bias: torch.Tensor | None) -> torch.Tensor:
    """Computes x W^T + bias. W is dequantized for the product where needed, and again for the backward."""
    y: Any = _PackedMatmul.apply(x, base)
    return y if bias is None else y + bias


class _PackedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: PackedLinear) -> torch.Tensor:
        ctx.base = base
        return base.product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0] @ ctx.base.dense(grads[0].dtype), None


class PackedFrozen(FrozenLinear):
    """The `FrozenLinear` of a `PackedLinear`."""

    is_exact = False
    base: PackedLinear | nn.Linear

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        assert isinstance(module, PackedLinear)
        self.base = module
        self.in_features, self.out_features = module.in_features, module.out_features

    @classmethod
    def stores(cls, module: nn.Module) -> bool:
        return isinstance(module, PackedLinear)

    def matmul(self, x: torch.Tensor, with_bias: bool = True) -> torch.Tensor:
        bias = self.base.bias if with_bias else None
        return (
            packed_matmul(x, self.base, bias)
            if isinstance(self.base, PackedLinear)
            else F.linear(x, self.base.weight, bias)
        )

    def matmul_t(self, grad: torch.Tensor) -> torch.Tensor:
        return grad @ self.weight(grad.dtype)

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        return self.base.dense(dtype) if isinstance(self.base, PackedLinear) else self.base.weight.detach().to(dtype)

    def correction(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        correction = self.base.correction if isinstance(self.base, PackedLinear) else None
        return correction.read() if correction else None

    @torch.no_grad()
    def set_weight(self, weight: torch.Tensor) -> None:
        """Replaces the packed layer by an ordinary one in the compute dtype: a merged weight is not quantized again."""
        dense: Any = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dtype = self.base.dtype if isinstance(self.base, PackedLinear) else self.base.weight.dtype
        dense.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        dense.bias = self.base.bias
        self.base = dense

    @torch.no_grad()
    def set_bias(self, bias: torch.Tensor) -> None:
        self.base.bias = nn.Parameter(bias.to(self.base.weight.dtype), requires_grad=False)
