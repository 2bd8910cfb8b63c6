"""Finds sources that lose many of their rows on the way to training."""

from __future__ import annotations

from collections import Counter

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings
from lamina.data.lost import MUCH, lost_line
from lamina.data.report import CHOSEN_REASONS


class Check(BaseCheck):
    """Losing more than a tenth of a source's rows is a warning, and more than `data.max_dropped` an error."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._rows: Counter[tuple[str, str]] = Counter()
        self._lost: dict[tuple[str, str], Counter[str]] = {}

    def see(self, seen: Seen) -> None:
        source, reason = seen.row.source, seen.left_out(self.settings)
        if reason in CHOSEN_REASONS:
            return
        key = seen.row.side, source.path if source is not None else seen.row.file
        self._rows[key] += 1
        if reason:
            self._lost.setdefault(key, Counter())[reason] += 1

    def finish(self) -> list[Finding]:
        found = []
        for key, counts in self._lost.items():
            lost, rows = counts.total(), self._rows[key]
            too_many = lost > self.settings.max_dropped * rows
            if too_many or lost > MUCH * rows:
                severity = Severity.ERROR if too_many else Severity.WARNING
                advice = "The other findings list the rows."
                if too_many:
                    advice += f" data.max_dropped={self.settings.max_dropped:g} allows at most that share."
                title = f"{key[1]}: {lost_line(counts, rows)}"
                found.append(Finding("rows_lost", severity, title, advice, lost, lost / rows))
        return found
