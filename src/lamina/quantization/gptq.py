"""GPTQ: chooses the 4-bit value of each weight so that the layer's outputs change least on real inputs.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
arXiv:2210.17323. With the layer's inputs X (T, in), it reduces

    |X (W - Q)^T|^2 = tr (W - Q) H (W - Q)^T        H = X^T X

by rounding W's columns one by one, those with the largest inputs first, and updating the remaining columns to
compensate for each rounding error as well as possible. The storage format does not change: the blocks' scales are those
of rounding to nearest, and only the chosen values differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lamina.compute.weights.packed import FourBitLinear
from lamina.config.quantization import QuantizationConfig
from lamina.quantization.pack import pack_weight

# Added to H's diagonal, relative to its mean; otherwise inputs that are rare in the documents would absorb too much
# error.
DAMPING = 0.01

# Columns per block: all later columns are updated after each block.
_COLUMNS = 64


def round_for_inputs(
    weights: Sequence[torch.Tensor], moments: torch.Tensor, config: QuantizationConfig
) -> list[tuple[FourBitLinear, float, float]]:
    """Quantizes the weights of layers that share an input.

    Args:
        weights: The weights, (out_features, in_features) each, on the CPU.
        moments: X^T X or a multiple of it, (in_features, in_features), float32, on the CPU.
        config: The quantization, with 4 bits.

    Returns:
        For each weight: the quantized layer, and |X (W - Q)^T| / |X W^T| for rounding to nearest and for GPTQ.
    """
    packed = [pack_weight(weight.contiguous(), config) for weight in weights]
    layers = [layer for layer in packed if isinstance(layer, FourBitLinear)]
    assert len(layers) == len(weights), config.bits
    nearest = [_relative_error(weight, layer, moments) for weight, layer in zip(weights, layers, strict=True)]
    numbers, order = layers[0].code.sort()
    scales = torch.cat([_scale_of_each(layer) for layer in layers])
    chosen = order.to(torch.uint8)[choose_numbers(torch.cat([*weights]), scales, moments, numbers).long()]
    for layer, own in zip(layers, chosen.split([layer.out_features for layer in layers]), strict=True):
        layer.choose(own)
    errors = [_relative_error(weight, layer, moments) for weight, layer in zip(weights, layers, strict=True)]
    return list(zip(layers, nearest, errors, strict=True))


def choose_numbers(
    weight: torch.Tensor, scales: torch.Tensor, moments: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """Chooses the quantized value of each weight.

    Args:
        weight: W, (out_features, in_features).
        scales: The scale of each weight's value, (out_features, in_features), float32.
        moments: H or a multiple of it, (in_features, in_features), float32.
        numbers: The values to choose from, (n,), float32, ascending.

    Returns:
        (out_features, in_features), uint8: indices into `numbers`.
    """
    order = moments.diagonal().argsort(descending=True, stable=True)
    left, scales = weight[:, order].float(), scales[:, order]
    factor = _factor(moments[order][:, order])
    bounds = (numbers[:-1] + numbers[1:]) / 2
    chosen = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    columns = weight.shape[1]
    for first in range(0, columns, _COLUMNS):
        block = slice(first, min(first + _COLUMNS, columns))
        # Transposed, so that a column is contiguous.
        now, own = left[:, block].T.contiguous(), factor[block, block]
        missed = torch.empty_like(now)
        for i, column in enumerate(range(block.start, block.stop)):
            scale = scales[:, column].contiguous()
            choice = torch.bucketize(now[i] / torch.where(scale == 0.0, 1.0, scale), bounds)
            chosen[:, column] = choice
            missed[i] = (now[i] - numbers[choice] * scale) / own[i, i]
            now[i + 1 :].addr_(own[i, i + 1 :], missed[i], alpha=-1.0)
        left[:, block.stop :].addmm_(missed.T, factor[block, block.stop :], alpha=-1.0)
    return torch.empty_like(chosen).scatter_(1, order.expand_as(chosen), chosen)


def _scale_of_each(layer: FourBitLinear) -> torch.Tensor:
    scales = layer.scales().float().repeat_interleave(layer.blocksize)
    return scales[: layer.out_features * layer.in_features].view(layer.out_features, layer.in_features)


def _relative_error(weight: torch.Tensor, layer: FourBitLinear, moments: torch.Tensor) -> float:
    exact = weight.float()
    missed = _size_of_outputs(exact - layer.dense(torch.float32), moments)
    return missed / max(_size_of_outputs(exact, moments), torch.finfo(torch.float32).tiny)


def _size_of_outputs(weight: torch.Tensor, moments: torch.Tensor) -> float:
    """Computes |X W^T|."""
    return float(((weight @ moments) * weight).sum().clamp_min(0.0).sqrt())


def _factor(moments: torch.Tensor) -> torch.Tensor:
    """Computes the upper triangular U with U^T U = (H + damping)^-1."""
    damped, damping = moments.clone(), DAMPING * float(moments.diagonal().mean())
    damped.diagonal().add_(max(damping, torch.finfo(moments.dtype).tiny))
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return upper
        damped.diagonal().add_(max(damping, torch.finfo(moments.dtype).tiny))
        damping *= 2.0
