"""Finds evaluation prompts that also occur in training."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck
from lamina.checks.ledger import Ledger, Verdict
from lamina.checks.minhash import bands, similar
from lamina.checks.settings import CheckSettings

# Estimated Jaccard similarity of the prompts' distinctive 5-grams; see `minhash.py` and `near_duplicates.py`.
MIN_PROMPT_SIMILARITY = 0.6

_ADVICE = "The evaluation will look better than it is. Remove the training rows; `--fix` does."


class Check(BaseCheck):
    """A leak is a warning, not an error: training works, but the evaluation overestimates quality."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._facts: dict[str, Any] = {}

    def finish(self) -> list[Finding]:
        train, evaluation = self.ledger.train_rows, self.ledger.eval_rows
        if not len(evaluation):
            return []
        exact = self._exact(train, evaluation)
        near = self._near(train[exact[train] < 0], evaluation)
        self._facts = {"exact_leaks": int((exact >= 0).sum()), "near_leaks": int((near >= 0).sum())}
        return [
            *self._finding("exact_leak", "an evaluation prompt occurs in training", exact, Verdict.EXACT_LEAK),
            *self._finding(
                "near_leak",
                "nearly the same prompt as an evaluation prompt occurs in training",
                near,
                Verdict.NEAR_LEAK,
            ),
        ]

    def facts(self) -> dict[str, Any]:
        return self._facts

    def _finding(self, code: str, title: str, partners: np.ndarray, verdict: Verdict) -> list[Finding]:
        rows = np.flatnonzero(partners >= 0)
        if not len(rows):
            return []
        self.ledger.mark(rows, partners[rows], verdict)
        examples = self.shown(rows, lambda number: f"evaluated in {self.ledger.place(int(partners[rows[number]]))}")
        share = len(rows) / len(self.ledger.train_rows)
        return [Finding(code, Severity.WARNING, title, _ADVICE, len(rows), share, examples)]

    def _exact(self, train: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
        """Returns for each training row an evaluation row with the same prompt, or -1: int64, (rows,)."""
        found = np.full(len(self.ledger), -1)
        prompts, first = np.unique(self.ledger.prompts[evaluation], return_index=True)
        places = np.minimum(np.searchsorted(prompts, self.ledger.prompts[train]), len(prompts) - 1)
        equal = prompts[places] == self.ledger.prompts[train]
        found[train[equal]] = evaluation[first[places[equal]]]
        return found

    def _near(self, train: np.ndarray, evaluation: np.ndarray) -> np.ndarray:
        """Returns for each training row an evaluation row with nearly the same prompt, or -1: int64, (rows,)."""
        signatures = self.ledger.signatures.prompts
        found = np.full(len(self.ledger), -1)
        is_eval = np.zeros(len(self.ledger), dtype=bool)
        is_eval[evaluation] = True
        for members, runs in bands(signatures, np.sort(np.concatenate((evaluation, train)))):
            # Each training row is compared with the nearest evaluation row on either side.
            positions, end = np.arange(len(members)), len(members) - 1
            marked = is_eval[members]
            before = np.maximum.accumulate(np.where(marked, positions, 0))
            after = np.minimum.accumulate(np.where(marked, positions, end)[::-1])[::-1]
            for partners in (before, after):
                pairs = np.flatnonzero(~marked & marked[partners] & (runs[partners] == runs) & (found[members] < 0))
                left, right = members[partners[pairs]], members[pairs]
                same = similar(signatures, left, right, MIN_PROMPT_SIMILARITY)
                found[right[same]] = left[same]
        return found
