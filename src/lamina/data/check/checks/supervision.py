"""Which share of the tokens is learnt from."""

from __future__ import annotations

from typing import Any

from lamina.data.check.checks._base import BaseCheck
from lamina.data.check.findings import Finding, Severity
from lamina.data.check.ledger import Ledger
from lamina.data.check.seen import Seen
from lamina.data.check.settings import CheckSettings

LITTLE = 0.05


class Check(BaseCheck):
    """Nothing supervised is an error; very little of it a warning, as most of the work goes into reading prompts."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._tokens = self._supervised = 0

    def see(self, seen: Seen) -> None:
        encoded = seen.row.encoded
        if encoded is None or not seen.trains:
            return
        fate = self.settings.fate(seen.example)
        limit = None if fate == "split" else self.settings.max_length
        if fate != "drop" or len(encoded) <= self.settings.max_length:
            self._tokens += len(encoded.input_ids[:limit])
            self._supervised += int(encoded.supervised[:limit].sum())

    def finish(self) -> list[Finding]:
        if not self._tokens:
            return []
        if not self._supervised:
            title = "no token of the training side is in the loss"
            return [Finding("nothing_supervised", Severity.ERROR, title, "Look at data.train_on and data.max_length.")]
        share = self._supervised / self._tokens
        if share >= LITTLE:
            return []
        title = f"only {share:.1%} of the tokens are in the loss"
        return [Finding("little_supervised", Severity.WARNING, title, "Shorten the prompts, or look at data.train_on.")]

    def facts(self) -> dict[str, Any]:
        if not self._tokens:
            return {}
        return {"supervised_tokens": self._supervised, "supervised_share": self._supervised / self._tokens}
