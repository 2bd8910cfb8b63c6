"""Rows that say the same as an earlier one, white space apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck
from lamina.checks.ledger import Ledger, Verdict


class Check(BaseCheck):
    """Duplicates are warnings: they weigh a row twice, and a split puts one on each side."""

    _count = 0

    def finish(self) -> list[Finding]:
        rows, originals = exact_duplicates(self.ledger)
        self._count = len(rows)
        if not self._count:
            return []
        self.ledger.mark(rows, originals, Verdict.EXACT_DUPLICATE)
        return [
            Finding(
                "exact_duplicate",
                Severity.WARNING,
                "the row says the same as an earlier one",
                "Keep one of them; `--fix` keeps the first.",
                self._count,
                self._count / len(self.ledger),
                self.shown(rows, lambda number: f"same as {self.ledger.place(int(originals[number]))}"),
            )
        ]

    def facts(self) -> dict[str, Any]:
        return {"exact_duplicates": self._count}


def exact_duplicates(ledger: Ledger) -> tuple[np.ndarray, np.ndarray]:
    """The rows that repeat an earlier one of their side, and for each the first that says it."""
    rows = np.flatnonzero(ledger.groups)
    # The side is part of what must be equal; a digest that another side's digest meets by this is one in 2**64.
    keys = ledger.digests[rows] + ledger.groups[rows].astype(np.uint64)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    originals = rows[first[group]]
    repeated = originals != rows
    return rows[repeated], originals[repeated]
