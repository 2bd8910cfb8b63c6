"""Whether there are enough examples."""

from __future__ import annotations

from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck

FLOOR = 200


class Check(BaseCheck):
    """Fewer than the guides' floor is a warning."""

    def finish(self) -> list[Finding]:
        count = len(self.ledger.train_rows)
        if not 0 < count < FLOOR:
            return []
        title = f"{count} examples to train on"
        advice = (
            "Guides ask for a few hundred to a few thousand good ones; better ones help more than many of one kind."
        )
        return [Finding("few_examples", Severity.WARNING, title, advice)]

    def facts(self) -> dict[str, Any]:
        return {
            "rows": len(self.ledger),
            "train_rows": len(self.ledger.train_rows),
            "eval_rows": len(self.ledger.eval_rows),
        }
