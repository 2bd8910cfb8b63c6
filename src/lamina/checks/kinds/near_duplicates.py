"""Finds near-duplicates of an earlier row: nearly the same prompt and nearly the same answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck
from lamina.checks.kinds.exact_duplicates import exact_duplicates
from lamina.checks.ledger import Verdict
from lamina.checks.minhash import bands, similar

# Threshold for the estimated Jaccard similarity of the rows' distinctive 5-grams (see `minhash.py`). 99% of GSM8K's
# rows with one word in thirty replaced, or a sentence added, are above it, and so are four of its own 7,473 rows
# (`benchmarks/data_check.py`). At 0.7, one in twenty is missed; at 0.5, false positives appear.
MIN_ROW_SIMILARITY = 0.6

# Threshold for the final answers. Two questions about the same long passage are similar as rows, but have different
# answers.
MIN_ANSWER_SIMILARITY = 0.5


class Check(BaseCheck):
    """Near-duplicates are warnings, as are exact duplicates."""

    _count = 0

    def finish(self) -> list[Finding]:
        originals = self._originals()
        rows = np.flatnonzero(originals != np.arange(len(originals)))
        self._count = len(rows)
        if not self._count:
            return []
        self.ledger.mark(rows, originals[rows], Verdict.NEAR_DUPLICATE)
        return [
            Finding(
                "near_duplicate",
                Severity.WARNING,
                "the row is nearly the same as an earlier one",
                "Keep the better one; `--fix` keeps the first.",
                self._count,
                self._count / len(self.ledger),
                self.shown(
                    rows, lambda number: f"nearly the same as {self.ledger.place(int(originals[rows[number]]))}"
                ),
            )
        ]

    def facts(self) -> dict[str, Any]:
        return {"near_duplicates": self._count}

    def _originals(self) -> np.ndarray:
        """Returns for each row the first row that it nearly equals, or its own index: int64, (rows,)."""
        rows, answers = self.ledger.signatures.rows, self.ledger.signatures.answers
        found = np.arange(len(self.ledger))
        groups = self.ledger.groups.copy()
        groups[exact_duplicates(self.ledger)[0]] = 0
        for group in np.unique(groups[groups > 0]):
            for members, runs in bands(rows, np.flatnonzero(groups == group)):
                # Each row is compared with the first row of its run and with the row before it, so that the work is
                # linear in the number of rows even if all are in one run.
                firsts = np.searchsorted(runs, runs)
                before = np.maximum(np.arange(len(members)) - 1, firsts)
                for partners in (firsts, before):
                    left, right = members[partners], members
                    left, right = np.minimum(left, right), np.maximum(left, right)
                    new = left < found[right]
                    left, right = left[new], right[new]
                    same = similar(rows, left, right, MIN_ROW_SIMILARITY)
                    left, right = left[same], right[same]
                    same = similar(answers, left, right, MIN_ANSWER_SIMILARITY)
                    np.minimum.at(found, right[same], left[same])
        return _without_chains(found, rows)


def _without_chains(found: np.ndarray, signatures: np.ndarray) -> np.ndarray:
    """Replaces originals that are near-duplicates themselves by their own, or drops pairs that are too different."""
    for row in np.flatnonzero(found != np.arange(len(found))):
        original = found[row]
        if found[original] != original:
            original = found[original]
            same = similar(signatures, np.array([original]), np.array([row]), MIN_ROW_SIMILARITY)[0]
            found[row] = original if same else row
    return found
