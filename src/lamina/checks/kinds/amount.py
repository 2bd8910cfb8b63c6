"""Checks whether there are enough examples."""

from __future__ import annotations

from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck

FLOOR = 200


class Check(BaseCheck):
    """Warns if there are fewer examples than common guides recommend."""

    def finish(self) -> list[Finding]:
        count = len(self.ledger.train_rows)
        if not 0 < count < FLOOR:
            return []
        title = f"{count} examples to train on"
        advice = (
            "Guides recommend a few hundred to a few thousand good examples; better examples help more than "
            "many similar ones."
        )
        return [Finding("few_examples", Severity.WARNING, title, advice)]

    def facts(self) -> dict[str, Any]:
        return {
            "rows": len(self.ledger),
            "train_rows": len(self.ledger.train_rows),
            "eval_rows": len(self.ledger.eval_rows),
        }
