"""Chooses tokens from logits, each row by itself: the kernel of `choose.cpp`, and the same in torch."""

from __future__ import annotations

import torch

from lamina.compute.kernels import native


def choose_tokens(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    uniforms: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Chooses a token for each row.

    Temperature comes first, then top_k, top_p and min_p, as in transformers; of equal logits, the first token.

    Args:
        logits: (T, V), float32.
        temperatures: (T,), float32; 0 takes the largest logit.
        top_ks: (T,), int64: only that many of the most probable tokens; 0 for all.
        top_ps: (T,), float32: only the most probable tokens that together reach this share; 1 for all.
        min_ps: (T,), float32: only tokens at least this times as probable as the most probable one; 0 for all.
        uniforms: (T,), int64 of 53 random bits.
        mask: (T, words), int32: a bit for each token that is allowed; None for all.

    Returns:
        (T,), int64, on the CPU; -1 where no token is allowed.
    """
    settings = (temperatures, top_ks, top_ps, min_ps, uniforms)
    if logits.is_cpu and logits.dtype == torch.float32 and native.unavailable() is None:
        tokens = torch.empty(len(logits), dtype=torch.int64)
        native.call("choose", torch.float32, logits, *settings, mask, tokens)
        return tokens
    rows = []
    for i, row in enumerate(logits):
        temperature, top_k, top_p, min_p, uniform = (setting[i].item() for setting in settings)
        rows.append(_choose(row, temperature, top_k, top_p, min_p, uniform, _bits(mask, i, row)))
    return torch.tensor(rows, dtype=torch.int64)


def log_normalizers(logits: torch.Tensor) -> torch.Tensor:
    """Computes the logsumexp of each row of logits (T, V), float32, alike whatever rows are beside it."""
    if logits.is_cpu and logits.dtype == torch.float32 and native.unavailable() is None:
        out = torch.empty(len(logits))
        native.call("log_normalizer", torch.float32, logits, out)
        return out
    return torch.stack([row.double().logsumexp(-1) for row in logits]).float().cpu()


def _bits(mask: torch.Tensor | None, row: int, logits: torch.Tensor) -> torch.Tensor | None:
    if mask is None:
        return None
    words = mask[row].to(logits.device)
    return (words[:, None] >> torch.arange(32, device=words.device) & 1).flatten()[: len(logits)].bool()


def _choose(
    logits: torch.Tensor,
    temperature: float,
    top_k: float,
    top_p: float,
    min_p: float,
    uniform: float,
    allowed: torch.Tensor | None,
) -> int:
    row = logits.double()
    if allowed is not None:
        row = row.masked_fill(~allowed, -torch.inf)
    best = int((row == row.max()).nonzero()[0]) if bool((row > -torch.inf).any()) else -1
    if best < 0 or temperature == 0.0:
        return best
    scaled = (row - row[best]) / temperature
    weights = torch.where((row > -torch.inf) & (scaled >= -87.0), scaled.exp(), 0.0).float().double().cpu()
    order = torch.argsort(weights, descending=True, stable=True)
    if 0 < top_k < len(order):
        weights[order[int(top_k) :]] = 0.0
    if top_p < 1.0:
        before = weights[order].cumsum(0) - weights[order]
        weights[order[(before >= top_p * weights.sum()) & (torch.arange(len(order)) > 0)]] = 0.0
    weights[weights < min_p] = 0.0
    sums = weights.cumsum(0)
    left = uniform * 2.0**-53 * float(sums[-1])
    past = (sums > left) & (weights > 0.0)
    return int(past.nonzero()[0]) if bool(past.any()) else int(weights.nonzero()[-1])
