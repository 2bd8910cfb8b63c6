"""The kernels in plain torch: what the compiled ones are tested against, and what runs where there is no compiler.

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
    """out = x scale (offset + weight), row by row.

    Args:
        x: (T, D).
        weight: (D,), in x's dtype.
        eps: Added to the mean square.
        offset: 0 as in Llama, which rounds before the weight; 1 as in Gemma, which rounds after it.
        out: (T, D), written.

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
    """out = the gradient of x, plus `residual` if there is one; all (T, D), `scale` from the forward."""
    wide, weighted = x.float(), grad.float() * (offset + weight.float())
    dot = (weighted * wide).mean(-1, keepdim=True) * scale[:, None].square()
    dx = scale[:, None] * (weighted - wide * dot)
    out.copy_(dx if residual is None else dx + residual.float())


def gated(gate: torch.Tensor, up: torch.Tensor, activation: int, out: torch.Tensor) -> None:
    """out = act(gate) up, all (T, I)."""
    value, _ = _activate(gate.float(), activation)
    out.copy_(value.to(up.dtype) * up)


def gated_backward_(gate: torch.Tensor, up: torch.Tensor, activation: int, grad: torch.Tensor) -> None:
    """In place: gate and up become their gradients, and the gradient of the product becomes the product itself."""
    value, slope = _activate(gate.float(), activation)
    wide = grad.float()
    product, grad_up = value.to(up.dtype) * up, wide * value
    gate.copy_(wide * up.float() * slope)
    up.copy_(grad_up)
    grad.copy_(product)


def rotary_(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, inverse: bool) -> None:
    """Turns the heads of x (T, H, D) by their token's angles, in place; `inverse` turns them back.

    Args:
        x: Any strides but 1 in the last dimension.
        cosine: (T, R) with R <= D: the first R elements of a head are turned, their first half against the second.
        sine: Like `cosine`.
        inverse: Turn the other way, which is also the gradient.
    """
    half = cosine.shape[-1] // 2
    c, s = cosine[:, None, :half].float(), sine[:, None, :half].float()
    s = -s if inverse else s
    first, second = x[..., :half], x[..., half : 2 * half]
    a, b = first.float(), second.float()
    turned = a * c - b * s
    second.copy_(b * c + a * s)
    first.copy_(turned)


def scale_columns_(y: torch.Tensor, scale: torch.Tensor) -> None:
    """y (T, O) times scale (O,) float32, in place."""
    y.copy_(y.float() * scale)


def scale_columns_backward(grad: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """From grad (T, O): out = grad scale, (T, O); and, for each column, the sum of grad y, (O,) float32."""
    out.copy_(grad.float() * scale)
    return (grad.float() * y.float()).sum(0)


def dropped(x: torch.Tensor, key: int, threshold: int, factor: float, out: torch.Tensor) -> None:
    """out = x factor where `stays` says so, else 0.

    Args:
        x: (T, D).
        key: Of `stays`.
        threshold: Of `stays`.
        factor: Multiplied in: the inverse of the probability of staying.
        out: (T, D), written.
    """
    out.copy_(torch.where(stays(x.shape, key, threshold, x.device), x.float() * factor, 0.0))


def add_dropped_(total: torch.Tensor, x: torch.Tensor, key: int, threshold: int, factor: float) -> None:
    """total (T, D) += x factor where `stays` says so, rounded once; the rest as in `dropped`."""
    total.copy_(total.float() + torch.where(stays(x.shape, key, threshold, x.device), x.float() * factor, 0.0))


def stays(shape: Sequence[int], key: int, threshold: int, device: torch.device) -> torch.Tensor:
    """Which elements a dropout leaves: a function of the key and of their place alone.

    A row's elements draw in groups of 64, 16 bits each. A group is eight blocks of Philox, whose counter is
    (block of the row, row, 0, 0). Their first two words are draws for 32 elements, their last two for the next 32.

    Args:
        shape: T, D.
        key: 64 bits.
        threshold: -2^15 to 2^15: a draw, read as a signed number, stays if it reaches this.
        device: Where to compute.

    Returns:
        (T, D), bool.
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
    """Philox4x32 with seven rounds: random words from counters and a key.

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
        p, q = a * 0xD2511F53, c * 0xCD9E8D57  # these may go round, beyond the 64 bits that count
        a, b = (q >> 32 & word) ^ b ^ first, q & word
        c, d = (p >> 32 & word) ^ d ^ second, p & word
        first, second = first + 0x9E3779B9 & word, second + 0xBB67AE85 & word
    return a, b, c, d


def narrow_product(narrow: torch.Tensor, wide: torch.Tensor, out: torch.Tensor, factor: float) -> None:
    """out = factor narrow^T wide: the gradient of a low-rank factor.

    Args:
        narrow: (T, R), of a few columns.
        wide: (T, D), in its dtype.
        out: (R, D) with any strides, written; float32 for a bfloat16 product that is not rounded.
        factor: Multiplied in.
    """
    # The narrow factor first and turned beforehand: the other order takes up to twice as long on a CPU.
    out.copy_(narrow.T.contiguous() @ wide)
    if factor != 1.0:
        out.mul_(factor)


def cross_entropy_(
    logits: torch.Tensor, targets: torch.Tensor, multiplier: float, softcap: float | None, wants_grad: bool
) -> torch.Tensor:
    """-log softmax of the targets, with the logits' products replaced by their gradient.

    Args:
        logits: (T, V), the head's product, contiguous. A logit is softcap tanh(multiplier product / softcap).
        targets: (T,), int64.
        multiplier: See above.
        softcap: See above; None for none.
        wants_grad: Whether to write the gradient; otherwise the content of `logits` is left undefined.

    Returns:
        (T,), float32.
    """
    values = logits.float() * multiplier
    slope = None
    if softcap is not None:
        tanh = torch.tanh(values / softcap)
        values, slope = tanh * softcap, 1.0 - tanh.square()
    normaliser = values.logsumexp(-1)
    loss = normaliser - values.gather(1, targets[:, None])[:, 0]
    if wants_grad:
        # d loss / d logits = softmax - one-hot
        grad = values.sub_(normaliser[:, None]).exp_()
        grad.scatter_add_(1, targets[:, None], grad.new_full((len(targets), 1), -1.0))
        if slope is not None:
            grad *= slope
        logits.copy_(grad * multiplier if multiplier != 1.0 else grad)
    return loss


def _activate(x: torch.Tensor, activation: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The activation and its derivative, float32."""
    if activation == SILU:
        sigmoid = torch.sigmoid(x)
        return x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))
    inner = math.sqrt(2.0 / math.pi)
    t = torch.tanh(inner * (x + 0.044715 * x**3))
    slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner * (1.0 + 3 * 0.044715 * x * x)
    return F.gelu(x, approximate="tanh"), slope
