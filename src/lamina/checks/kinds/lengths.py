"""Finds rows that are much shorter or longer than the others."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck
from lamina.checks.kinds._spread import spread_of
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings

# In robust standard deviations (1.4826 MAD) of the logarithm, since text lengths are nearly log-normal.
FAR = 5.0

# If lengths hardly vary, rows that are 10% longer would otherwise be outliers.
LEAST_SPREAD = 0.2
FEWEST_ROWS = 50


class Check(BaseCheck):
    """Outliers are infos: a long row may be the best one. Training and evaluation rows are compared together."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._characters = {"row": array("I"), "answer": array("I")}

    def see(self, seen: Seen) -> None:
        usable = seen.usable is not None
        self._characters["row"].append(len(seen.text) if usable else 0)
        self._characters["answer"].append(len(seen.answer) if usable else 0)

    def finish(self) -> list[Finding]:
        found = []
        for what, characters in self._characters.items():
            lengths = np.frombuffer(characters, np.uint32)
            known = np.flatnonzero(lengths)
            if len(known) < FEWEST_ROWS:
                continue
            logs = np.log(lengths[known])
            middle = np.median(logs)
            spread = max(LEAST_SPREAD, 1.4826 * float(np.median(np.abs(logs - middle))))
            scores = (logs - middle) / spread
            for side, far in (("short", scores < -FAR), ("long", scores > FAR)):
                rows = known[far][np.argsort(-np.abs(scores[far]), kind="stable")]
                if len(rows):
                    found.append(self._finding(what, side, rows, lengths, len(known)))
        return found

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for what, characters in self._characters.items():
            lengths = np.frombuffer(characters, np.uint32)
            lengths = lengths[lengths > 0]
            if len(lengths):
                facts[f"{what}_characters"] = spread_of(lengths)
        return facts

    def _finding(self, what: str, side: str, rows: np.ndarray, lengths: np.ndarray, of: int) -> Finding:
        return Finding(
            f"{side}_{what}",
            Severity.INFO,
            f"the {what} is much {side}er than the others",
            "Check whether it is truncated." if side == "short" else "Check whether it is a single row.",
            len(rows),
            len(rows) / of,
            self.shown(rows, lambda number: f"{lengths[rows[number]]:,} characters"),
        )
