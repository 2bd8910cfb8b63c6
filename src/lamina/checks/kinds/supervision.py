"""Checks what share of the tokens is in the loss, and finds rows without any."""

from __future__ import annotations

from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings
from lamina.data.report import DROP_REASONS

LITTLE = 0.05


class Check(BaseCheck):
    """No token in the loss is an error; a very small share is a warning, since prompts then take most compute."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._tokens = self._supervised = self._rows = 0
        self._nothing = Tally(settings)

    def see(self, seen: Seen) -> None:
        encoded = seen.row.encoded
        if encoded is None:
            return
        fate = self.settings.fate(seen.example)
        if fate == "drop" and seen.row.tokens > self.settings.max_length:
            return
        in_loss = encoded.supervised[: None if fate == "split" else self.settings.max_length]
        supervised = int(in_loss.sum())
        self._rows += 1
        if not supervised:
            self._nothing.add(seen, "none after truncation" if len(in_loss) < len(encoded) else "")
        if seen.trains:
            self._tokens += len(in_loss)
            self._supervised += supervised

    def finish(self) -> list[Finding]:
        advice = "Check data.train_on and data.max_length."
        found = self._nothing.finding(
            "no_supervised_tokens",
            Severity.WARNING,
            f"dropped: {DROP_REASONS['no_supervised_tokens']}",
            advice,
            self._rows,
        )
        share = self._supervised / max(1, self._tokens)
        if self._tokens and not self._supervised:
            title = "no token of the training side is in the loss"
            found.append(Finding("nothing_supervised", Severity.ERROR, title, advice))
        elif self._tokens and share < LITTLE:
            title = f"only {share:.1%} of the tokens are in the loss"
            advice = "Shorten the prompts, or check data.train_on."
            found.append(Finding("little_supervised", Severity.WARNING, title, advice))
        return found

    def facts(self) -> dict[str, Any]:
        if not self._tokens:
            return {}
        return {"supervised_tokens": self._supervised, "supervised_share": self._supervised / self._tokens}
