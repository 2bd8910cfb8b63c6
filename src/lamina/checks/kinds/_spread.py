"""The distribution of a figure over the rows, for the report and its plots."""

from __future__ import annotations

from typing import Any

import numpy as np

BARS = 30


def spread_of(lengths: np.ndarray) -> dict[str, Any]:
    """Returns minimum, median, 95th percentile and maximum, and a histogram of about `BARS` bars with round edges."""
    low, high = int(lengths.min()), int(lengths.max())
    # A few extreme values would squeeze all others into one bar, so everything above the 99th percentile is in the last
    # one.
    top = max(low + 1, int(np.percentile(lengths, 99)))
    step = _round_step((top - low) / BARS)
    edges = np.arange(low // step * step, top + step, step)
    counts, _ = np.histogram(np.minimum(lengths, edges[-1]), bins=edges)
    return {
        "shortest": low,
        "median": int(np.median(lengths)),
        "p95": int(np.percentile(lengths, 95)),
        "longest": high,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _round_step(step: float) -> int:
    unit = 10 ** max(0, int(np.floor(np.log10(max(step, 1)))))
    return next(int(unit * factor) for factor in (1, 2, 5, 10) if unit * factor >= step)
