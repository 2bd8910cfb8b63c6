"""Statistics of paired evaluations: estimates with intervals, tests, corrections, and how many rows they take.

Everything takes one number a row. numpy and scipy alone; nothing here knows what was evaluated.
"""

from __future__ import annotations

from lamina.evaluation.statistics.estimate import Estimate, estimate
from lamina.evaluation.statistics.holm import holm
from lamina.evaluation.statistics.intervals import share_interval
from lamina.evaluation.statistics.noninferiority import NonInferiority, decide_not_worse, not_worse, rows_if_equal
from lamina.evaluation.statistics.paired import Difference, Verdict, compare, decide
from lamina.evaluation.statistics.power import power_of, rows_needed, smallest_difference, spread_of

__all__ = [
    "Difference",
    "Estimate",
    "NonInferiority",
    "Verdict",
    "compare",
    "decide",
    "decide_not_worse",
    "estimate",
    "holm",
    "not_worse",
    "power_of",
    "rows_if_equal",
    "rows_needed",
    "share_interval",
    "smallest_difference",
    "spread_of",
]
