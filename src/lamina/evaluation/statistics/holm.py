"""Holm's correction (1979): the chance that any of several true null hypotheses is rejected stays at the level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamina.evaluation.statistics.rows import checked


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: each is compared with the level as if it were the only one.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if not len(p_values):
        return []
    found = checked(p_values, "p-values")
    order = np.argsort(found, kind="stable")
    steps = found[order] * np.arange(len(found), 0, -1)
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted.tolist()
