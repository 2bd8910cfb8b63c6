"""DoRA's norms without forming the merged weight: the row norms of W + s B A from rank-sized products.

    ||W + s B A||^2 = ||W||^2 + 2 s rowsum((W A^T) * B) + s^2 rowsum((B (A A^T)) * B)

||W||^2 is computed once. Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353.
"""

from __future__ import annotations

import torch

from lamina.compute.weights.frozen import FrozenLinear

# Rows of W that are converted to float32 at once.
_ROWS = 4096


@torch.no_grad()
def row_squares(frozen: FrozenLinear) -> torch.Tensor:
    """Computes ||W||^2 for each row: (out,), float32."""
    weight = frozen.weight(frozen.base.weight.dtype)
    if weight.is_meta:  # a model without weights: the result's shape is all there is
        return torch.empty(len(weight), device="meta")
    return torch.cat([rows.float().square().sum(1) for rows in weight.split(_ROWS)])


@torch.no_grad()
def row_norms(
    frozen: FrozenLinear, squares: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Computes ||W + s B A|| for each row, without gradients, as the paper proposes (section 4.3).

    Args:
        frozen: W.
        squares: From `row_squares`.
        A: (r, in), float32.
        B: (out, r), float32.
        scaling: s.

    Returns:
        (out,), float32.
    """
    if squares.is_meta:
        return squares
    dtype = frozen.base.weight.dtype
    WA = frozen.matmul(A.to(dtype), with_bias=False).T.float()
    BAA = B @ (A @ A.T)
    return (squares + scaling * ((2.0 * WA + scaling * BAA) * B).sum(1)).clamp_min(0.0).sqrt()
