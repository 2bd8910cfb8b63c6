"""Finds rows that do not fit their format, rows that the chat template refuses, and rows that training drops."""

from __future__ import annotations

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.row import CheckedRow
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings
from lamina.config import SourceConfig
from lamina.data.no_loss import TRIED, no_loss_fix
from lamina.data.report import CHOSEN_REASONS, DROP_REASONS

# Reported with the token lengths.
_BY_LENGTH = "longer_than_max_length"


class Check(BaseCheck):
    """Misfits, refusals and rows without a loss are errors: training stops on them.

    Dropped rows are warnings, unless all rows are dropped.
    """

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._misfits, self._refusals, self._trimmed = Tally(settings), Tally(settings), Tally(settings)
        self._no_loss = Tally(settings)
        self._of_no_loss: list[CheckedRow] = []
        self._wanted = 0
        self._dropped: dict[str, Tally] = {}
        self._trained_on = 0

    def see(self, seen: Seen) -> None:
        row = seen.row
        if row.read.misfit:
            self._misfits.add(seen, row.read.misfit)
        if row.refusal:
            self._refusals.add(seen, row.refusal)
        if (
            seen.example is not None
            and self.settings.kinds is not None
            and seen.example.kind not in self.settings.kinds
        ):
            self._no_loss.add(seen, seen.example.kind)
            self._wanted += seen.example.label is True
            if len(self._of_no_loss) < TRIED:
                self._of_no_loss.append(seen.row)
        if row.read.trimmed:
            self._trimmed.add(seen)
        if row.read.drop_reason and row.read.drop_reason != _BY_LENGTH:
            self._dropped.setdefault(row.read.drop_reason, Tally(self.settings)).add(seen)
        self._trained_on += seen.trains and seen.usable is not None and not row.read.drop_reason

    def finish(self) -> list[Finding]:
        rows = len(self.ledger)
        found = self._misfits.finding(
            "misfit", Severity.ERROR, "the row does not fit its format", "Correct the row, or set the format.", rows
        )
        found += self._refusals.finding(
            "template_refusal",
            Severity.ERROR,
            "the chat template refuses the row",
            "Correct the row, or set data.chat_template to a built-in template.",
            rows,
        )
        found += self._no_loss.finding(
            "no_loss_for_it",
            Severity.ERROR,
            "the loss does not learn from rows of this kind",
            self._fix(),
            rows,
        )
        found += self._trimmed.finding(
            "trimmed", Severity.INFO, "turns after the last answer are removed", "They are not trained on.", rows
        )
        for reason, tally in self._dropped.items():
            chosen = reason in CHOSEN_REASONS
            found += tally.finding(
                reason,
                Severity.INFO if chosen else Severity.WARNING,
                f"dropped: {DROP_REASONS.get(reason, reason)}",
                "The configuration excludes it." if chosen else "Complete the row, or remove it with `--fix`.",
                rows,
            )
        if not self._trained_on:
            advice = "The other findings say why each row is dropped."
            found.append(Finding("no_usable_row", Severity.ERROR, "there is no row to train on", advice))
        return found

    def _fix(self) -> str:
        """Returns the fix for rows without a loss, based on the first of them."""
        if not self._of_no_loss:
            return ""
        first = self._of_no_loss[0]
        rows = [
            (row.read.value, row.read.example)
            for row in self._of_no_loss
            if row.file == first.file and row.read.value is not None and row.read.example is not None
        ]
        source = first.source or SourceConfig(path=first.file)
        fix = no_loss_fix(rows[0][1].kind, rows, source, self._wanted, self._no_loss.count)
        return f"{fix[0].upper()}{fix[1:]}."
