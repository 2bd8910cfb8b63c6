"""Runs the checks: one pass that shows each row to every check, and then the findings of each."""

from __future__ import annotations

from collections.abc import Iterable

from lamina.checks.findings import CheckReport, in_order
from lamina.checks.kinds import CHECKS
from lamina.checks.ledger import Ledger
from lamina.checks.row import CheckedRow
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings
from lamina.machine.garbage import few_collections

PROGRESS_ROWS = 500


def examine(rows: Iterable[CheckedRow], settings: CheckSettings) -> CheckReport:
    """Runs every check over the rows, in a single pass.

    Args:
        rows: The training side, followed by the evaluation side.
        settings: The run that the data is for.
    """
    ledger = Ledger(settings.has_eval)
    checks = {name: check(settings, ledger) for name, check in CHECKS.items()}
    with few_collections():
        for index, row in enumerate(rows):
            seen = Seen(row, index)
            ledger.add(seen)
            for check in checks.values():
                check.see(seen)
            if len(ledger) % PROGRESS_ROWS == 0:
                settings.progress(len(ledger))
    settings.progress(len(ledger))
    ledger.finish()
    findings = []
    facts = {"tokens_checked": settings.tokenizer is not None}
    for name in CHECKS:
        check = checks.pop(name)  # frees its memory before the next check sorts
        findings += check.finish()
        facts |= check.facts()
    return CheckReport(in_order(findings), facts, ledger)
