"""The paired permutation test: if neither of two subjects is better, each row's difference could have had either sign.

All signs are tried where that is feasible, random ones otherwise. With clusters, all rows of one change sign together,
as they would have done.
"""

from __future__ import annotations

import numpy as np

from lamina.evaluation.statistics.rows import Array

# Up to so many differences all signs are tried: 2^15 of them, half of which mirror the others.
MOST_EXACT = 16

RANDOM_FLIPS = 9_999

_ENTRIES_AT_ONCE = 4_000_000


def flip_p(values: Array, seed: int = 0) -> Array:
    """Two-sided p-values of sums that are 0 if neither subject is better.

    Args:
        values: (data sets, clusters): differences, summed by cluster.
        seed: Of random signs.
    """
    count = values.shape[1]
    totals = np.abs(values.sum(axis=1)) - 1e-9 * np.abs(values).sum(axis=1)
    if count <= MOST_EXACT:
        return _reached(_all_signs(count), values, totals) / 2 ** max(count - 1, 0)
    rng = np.random.default_rng(seed)
    reached = np.ones(len(values))  # the signs as they are
    left = RANDOM_FLIPS
    while left:
        now = min(left, max(1, _ENTRIES_AT_ONCE // count))
        reached += _reached(rng.integers(0, 2, (now, count), dtype=np.int8).astype(np.float64) * 2 - 1, values, totals)
        left -= now
    return reached / (RANDOM_FLIPS + 1)


def _all_signs(count: int) -> Array:
    numbers = np.arange(2 ** max(count - 1, 0))
    return 1 - 2 * (numbers[:, None] >> np.arange(count) & 1).astype(np.float64)


def _reached(signs: Array, values: Array, totals: Array) -> Array:
    return (np.abs(signs @ values.T) >= totals).sum(axis=0).astype(np.float64)
