"""Finds rows with the same text as an earlier row, ignoring white space."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck
from lamina.checks.ledger import Ledger, Verdict


class Check(BaseCheck):
    """Duplicates are warnings: they count a row twice, and a random split puts copies on both sides."""

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
                "the row has the same text as an earlier one",
                "Keep one of them; `--fix` keeps the first.",
                self._count,
                self._count / len(self.ledger),
                self.shown(rows, lambda number: f"same as {self.ledger.place(int(originals[number]))}"),
            )
        ]

    def facts(self) -> dict[str, Any]:
        return {"exact_duplicates": self._count}


def exact_duplicates(ledger: Ledger) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows that repeat an earlier row of the same side, and the first row with that text for each."""
    rows = np.flatnonzero(ledger.groups)
    # The side is part of the key. The probability that this makes digests of different sides collide is 2**-64.
    keys = ledger.digests[rows] + ledger.groups[rows].astype(np.uint64)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    originals = rows[first[group]]
    repeated = originals != rows
    return rows[repeated], originals[repeated]
