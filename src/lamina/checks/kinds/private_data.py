"""Finds personal data and secrets, which a model could reveal to anybody."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings


class Check(BaseCheck):
    """Both are warnings: only a person can distinguish an example address from a customer's."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._secrets, self._personal = Tally(settings), Tally(settings)
        self._kinds: Counter[str] = Counter()

    def see(self, seen: Seen) -> None:
        for secret, tally in ((True, self._secrets), (False, self._personal)):
            found = [item for item in seen.private if item.secret is secret]
            if found:
                kinds = list(dict.fromkeys(item.kind for item in found))
                tally.add(seen, ", ".join(kinds), found[0].start)
                self._kinds.update(kinds)

    def finish(self) -> list[Finding]:
        rows = len(self.ledger)
        return [
            *self._secrets.finding(
                "secret",
                Severity.WARNING,
                "the row contains a secret (shown masked)",
                "Remove it from the data, and revoke it if it is still valid.",
                rows,
            ),
            *self._personal.finding(
                "personal_data",
                Severity.WARNING,
                "the row contains personal data (shown masked)",
                "Replace it with fictitious data, unless it is already fictitious.",
                rows,
            ),
        ]

    def facts(self) -> dict[str, Any]:
        return {"private": dict(self._kinds.most_common())} if self._kinds else {}
