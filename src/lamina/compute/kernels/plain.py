"""The kernels in plain torch: the reference for the others, and the fallback without a compiler.

Every function works on any device. Shapes: T tokens (or rows), D width, I intermediate width, H heads, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

SILU, GELU_TANH = 0, 1

DROPOUT_GROUP = 64
PHILOX_ROUNDS = 7


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float, out: torch.Tensor) -> torch.Tensor:
    """Computes an RMS norm: out = x scale (offset + weight), row by row.

    Args:
        x: Input, (T, D).
        weight: (D,), in x's dtype.
        eps: Added to the mean square.
        offset: 0 as in Llama, which rounds before it multiplies by the weight; 1 as in Gemma, which rounds after.
        out: Output, (T, D).

    Returns:
        scale, (T,) float32: 1 / sqrt(mean(x^2) + eps).
    """
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1) + eps)
    normed = wide * scale[:, None]
    out.copy_(normed.to(x.dtype) * weight if offset == 0.0 else normed * (offset + weight.float()))
    return scale


def rms_norm_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: float,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Writes the gradient of x, plus `residual` unless None, into `out`; all (T, D), `scale` from the forward."""
    wide, weighted = x.float(), grad.float() * (offset + weight.float())
    dot = (weighted * wide).mean(-1, keepdim=True) * scale[:, None].square()
    dx = scale[:, None] * (weighted - wide * dot)
    out.copy_(dx if residual is None else dx + residual.float())


def gated(gate: torch.Tensor, up: torch.Tensor, activation: int, out: torch.Tensor) -> None:
    """Computes out = act(gate) up, all (T, I)."""
    value, _ = _activate(gate.float(), activation)
    out.copy_(value.to(up.dtype) * up)


def gated_backward_(gate: torch.Tensor, up: torch.Tensor, activation: int, grad: torch.Tensor) -> None:
    """Overwrites gate and up by their gradients, and `grad`, the gradient of the product, by the product itself."""
    value, slope = _activate(gate.float(), activation)
    wide = grad.float()
    product, grad_up = value.to(up.dtype) * up, wide * value
    gate.copy_(wide * up.float() * slope)
    up.copy_(grad_up)
    grad.copy_(product)


def rotary_(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, inverse: bool) -> None:
    """Applies rotary positions to the heads of x (T, H, D), in place.

    Args:
        x: Any strides, but 1 in the last dimension.
        cosine: (T, R) with R <= D: the first R elements of a head are rotated, the first half of them with the second.
        sine: Like `cosine`.
        inverse: Whether to rotate the other way, which is also the backward.
    """
    half = cosine.shape[-1] // 2
    c, s = cosine[:, None, :half].float(), sine[:, None, :half].float()
    s = -s if inverse else s
    first, second = x[..., :half], x[..., half : 2 * half]
    a, b = first.float(), second.float()
    rotated = a * c - b * s
    second.copy_(b * c + a * s)
    first.copy_(rotated)


def scale_columns_(y: torch.Tensor, scale: torch.Tensor) -> None:
    """Multiplies y (T, O) by scale (O,), float32, in place."""
    y.copy_(y.float() * scale)


def scale_columns_backward(grad: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Computes out = grad scale, (T, O), and returns the sum of grad y over each column, (O,) float32."""
    out.copy_(grad.float() * scale)
    return (grad.float() * y.float()).sum(0)


def dropped(x: torch.Tensor, key: int, threshold: int, factor: float, out: torch.Tensor) -> None:
    """Computes dropout: out = x factor where `keep_mask` is True, else 0.

    Args:
        x: Input, (T, D).
        key: See `keep_mask`.
        threshold: See `keep_mask`.
        factor: The inverse of the probability of keeping an element.
        out: Output, (T, D).
    """
    out.copy_(torch.where(keep_mask(x.shape, key, threshold, x.device), x.float() * factor, 0.0))


def add_dropped_(total: torch.Tensor, x: torch.Tensor, key: int, threshold: int, factor: float) -> None:
    """Adds x factor where `keep_mask` is True to total (T, D), rounding once; arguments as in `dropped`."""
    total.copy_(total.float() + torch.where(keep_mask(x.shape, key, threshold, x.device), x.float() * factor, 0.0))


def keep_mask(shape: Sequence[int], key: int, threshold: int, device: torch.device) -> torch.Tensor:
    """Computes a dropout's mask, a function of the key and the element's index alone.

    The elements of a row draw 16 bits each, in groups of 64. A group is eight blocks of Philox, whose counter is
    (block of the row, row, 0, 0). Their first two words are draws for 32 elements, their last two for the next 32.

    Args:
        shape: (T, D).
        key: Key of the generator, 64 bits.
        threshold: -2^15 to 2^15: an element is kept if its draw, read as a signed integer, is at least this.
        device: Where to compute.

    Returns:
        (T, D), bool: True for kept elements.
    """
    rows, width = shape
    groups = -(-width // DROPOUT_GROUP)
    block = torch.arange(groups * 8, device=device).view(1, groups, 8)
    row = torch.arange(rows, device=device).view(rows, 1, 1)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words = philox((block, row, zero, zero), key)
    draws = torch.stack([words[0] | words[1] << 32, words[2] | words[3] << 32], 2).view(torch.int16)
    return draws.view(rows, groups * DROPOUT_GROUP)[:, :width] >= threshold


def philox(counter: tuple[torch.Tensor, ...], key: int) -> tuple[torch.Tensor, ...]:
    """Computes Philox4x32 with seven rounds: random words from counters and a key.

    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, where seven rounds are the
    fewest that pass BigCrush.

    Args:
        counter: Four words of 32 bits as int64, in shapes that broadcast.
        key: 64 bits.

    Returns:
        Four words of 32 bits, int64.
    """
    word = 2**32 - 1
    a, b, c, d = counter
    first, second = key & word, key >> 32 & word
    for _ in range(PHILOX_ROUNDS):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # may overflow, which leaves the lower 64 bits right
        a, b = (q >> 32 & word) ^ b ^ first, q & word
        c, d = (p >> 32 & word) ^ d ^ second, p & word
        first, second = first + 0x9E3779B9 & word, second + 0xBB67AE85 & word
    return a, b, c, d


def narrow_product(narrow: torch.Tensor, wide: torch.Tensor, out: torch.Tensor, factor: float) -> None:
    """Computes out = factor narrow^T wide, the gradient of a low-rank factor.

    Args:
        narrow: (T, R), with few columns.
        wide: (T, D), in the same dtype.
        out: Output, (R, D), any strides; with float32, a bfloat16 product is not rounded.
        factor: What the product is multiplied by.
    """
    # The narrow factor is transposed first: the other order takes up to twice as long on a CPU.
    out.copy_(narrow.T.contiguous() @ wide)
    if factor != 1.0:
        out.mul_(factor)


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, multiplier: float, softcap: float | None, wants_grad: bool
) -> torch.Tensor:
    """Computes -log softmax of the targets, and overwrites the head's product by its gradient.

    Args:
        logits: The head's product, (T, V), contiguous. A logit is softcap tanh(multiplier product / softcap).
        targets: (T,), int64.
        multiplier: Factor of the product.
        softcap: Cap of the logits; None for none.
        wants_grad: Whether to write the gradient; otherwise the content of `logits` is undefined afterwards.

    Returns:
        The losses, (T,), float32.
    """
    values = logits.float() * multiplier
    slope = None
    if softcap is not None:
        tanh = torch.tanh(values / softcap)
        values, slope = tanh * softcap, 1.0 - tanh.square()
    normalizer = values.logsumexp(-1)
    loss = normalizer - values.gather(1, targets[:, None])[:, 0]
    if wants_grad:
        # d loss / d logits = softmax - one-hot
        grad = values.sub_(normalizer[:, None]).exp_()
        grad.scatter_add_(1, targets[:, None], grad.new_full((len(targets), 1), -1.0))
        if slope is not None:
            grad *= slope
        logits.copy_(grad * multiplier if multiplier != 1.0 else grad)
    return loss


def _activate(x: torch.Tensor, activation: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the activation and its derivative, float32."""
    if activation == SILU:
        sigmoid = torch.sigmoid(x)
        return x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))
    inner = math.sqrt(2.0 / math.pi)
    t = torch.tanh(inner * (x + 0.044715 * x**3))
    slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner * (1.0 + 3 * 0.044715 * x * x)
    return F.gelu(x, approximate="tanh"), slope
