"""What every check has, and what several of them need to stay small however many rows come."""

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
    """One thing to look for.

    Attributes:
        settings: The run that the data is for.
        ledger: An entry for each row, the current one included.
    """

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        self.settings = settings
        self.ledger = ledger

    def see(self, seen: Seen) -> None:
        """Takes notice of a row. What is kept of it must be small."""

    def finish(self) -> list[Finding]:
        """What was found, after the last row."""
        return []

    def facts(self) -> dict[str, Any]:
        """Figures for the report, as plain data; asked for after `finish`."""
        return {}

    def shown(self, rows: np.ndarray, details: Callable[[int], str]) -> list[Offender]:
        """The first of `rows` (indices) as examples; `details` tells of each by its place in `rows`."""
        return [
            Offender(self.ledger.place(int(row)), self.ledger.excerpt(int(row)), mask(details(number)))
            for number, row in enumerate(rows[: self.settings.examples])
        ]


class Tally:
    """Counts offending rows and keeps the first of them as examples."""

    def __init__(self, settings: CheckSettings) -> None:
        self.count = 0
        self._examples: list[Offender] = []
        self._most = settings.examples

    def add(self, seen: Seen, detail: str = "", at: int = 0) -> None:
        """Counts a row; `at` is the character of its text that the matter is at."""
        self.count += 1
        if len(self._examples) < self._most:
            self._examples.append(seen.offender(detail, at))

    def finding(self, code: str, severity: Severity, title: str, advice: str, rows: int) -> list[Finding]:
        """The finding, as a list that is empty where there was nothing; `rows` are those that were looked at."""
        if not self.count:
            return []
        return [Finding(code, severity, title, advice, self.count, self.count / max(1, rows), self._examples)]


class Frequent:
    """Counts strings in bounded memory: those that come often are surely there, rare ones may be forgotten.

    Manku and Motwani's lossy counting: whenever too many keys are held, the rarest go, and `lost` says how often
    a key may have been seen beyond its count.
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
    """Which rows to look at where looking at all would take too long: all at first, then ever fewer of them."""

    def __init__(self, most: int) -> None:
        self.taken = 0
        self._most, self._step, self._turn, self._left = most, 1, 0, most

    def take(self) -> bool:
        """Whether to look at the next row: at all of the first `most`, half of the next, and so on."""
        self._turn += 1
        if self._turn % self._step:
            return False
        self.taken += 1
        self._left -= 1
        if not self._left:
            self._step, self._left = 2 * self._step, self._most // 2
        return True
