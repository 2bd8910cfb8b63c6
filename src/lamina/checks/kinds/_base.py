"""The base class of all checks, and helpers with bounded memory for any number of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from lamina.checks.findings import Finding, Severity
from lamina.checks.ledger import Ledger
from lamina.checks.private import mask
from lamina.checks.row import Offender
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings


class BaseCheck:
    """One check.

    Attributes:
        settings: The run that the data is for.
        ledger: An entry for each row, including the current one.
    """

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        self.settings = settings
        self.ledger = ledger

    def see(self, seen: Seen) -> None:
        """Processes a row. What it keeps of the row must be small."""

    def finish(self) -> list[Finding]:
        """Returns the findings, after the last row."""
        return []

    def facts(self) -> dict[str, Any]:
        """Returns figures for the report, as plain data; called after `finish`."""
        return {}

    def shown(self, rows: np.ndarray, details: Callable[[int], str]) -> list[Offender]:
        """Returns the first of `rows` (indices) as examples; `details` maps a position in `rows` to its detail."""
        return [
            Offender(self.ledger.place(int(row)), self.ledger.excerpt(int(row)), mask(details(number)))
            for number, row in enumerate(rows[: self.settings.examples])
        ]


class Tally:
    """Counts offending rows, and keeps the first of them as examples."""

    def __init__(self, settings: CheckSettings) -> None:
        self.count = 0
        self._examples: list[Offender] = []
        self._most = settings.examples

    def add(self, seen: Seen, detail: str = "", at: int = 0) -> None:
        """Counts a row; `at` is the offset of the problem in its text."""
        self.count += 1
        if len(self._examples) < self._most:
            self._examples.append(seen.offender(detail, at))

    def finding(self, code: str, severity: Severity, title: str, advice: str, rows: int) -> list[Finding]:
        """Returns the finding in a list, which is empty if no row was counted; `rows` is the number of rows seen."""
        if not self.count:
            return []
        return [Finding(code, severity, title, advice, self.count, self.count / max(1, rows), self._examples)]


class Frequent:
    """Counts strings in bounded memory: frequent strings are certain to be included, rare ones may be forgotten.

    Manku and Motwani's lossy counting: whenever there are too many keys, the rarest are dropped. `lost` is the maximum
    number of occurrences missing from a count.
    """

    def __init__(self, most: int) -> None:
        self.counts: Counter[str] = Counter()
        self.lost = 0
        self._most = most

    def add(self, key: str) -> None:
        """Counts a key."""
        self.counts[key] += 1
        if len(self.counts) > self._most:
            self.lost += 1
            self.counts = Counter({key: count - 1 for key, count in self.counts.items() if count > 1})


class Sample:
    """Selects rows for a check that is too slow for all rows: all at first, then a decreasing share."""

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most, self._step, self._turn, self._left = most, 1, 0, most

    def take(self) -> bool:
        """Returns whether to check the next row: all of the first `most`, half of the next, and so on."""
        self._turn += 1
        if self._turn % self._step:
            return False
        self.taken += 1
        self._left -= 1
        if not self._left:
            self._step, self._left = 2 * self._step, self._most // 2
        return True
