"""Checks how full the micro-batches are."""

from __future__ import annotations

from array import array
from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings
from lamina.data.packing import plan_epoch

LOW = 0.7


class Check(BaseCheck):
    """Packing that leaves micro-batches a third empty is an info; a larger batch fills them better."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._lengths = array("I")
        self._facts: dict[str, Any] = {}

    def see(self, seen: Seen) -> None:
        encoded, limit = seen.row.encoded, self.settings.max_length
        if not encoded or not seen.trains or seen.row.read.drop_reason:
            return
        fate = self.settings.fate(seen.example)
        if fate == "split":
            whole, rest = divmod(len(encoded), limit)
            self._lengths.extend([limit] * whole + [rest] * (rest > 0))
        elif fate == "cut" or len(encoded) <= limit:
            self._lengths.append(min(len(encoded), limit))

    def finish(self) -> list[Finding]:
        settings = self.settings
        if not self._lengths:
            return []
        tokens, budget = sum(self._lengths), settings.batch_size * settings.max_length
        if settings.wrapped:
            batches = -(-tokens // budget)
        else:
            args = settings.batch_size, settings.max_length, settings.packing, settings.seed
            batches = len(plan_epoch(self._lengths.tolist(), *args, epoch=0))
        self._facts = {"micro_batches": batches}
        if not settings.packing:
            return []
        efficiency = tokens / (batches * budget)
        self._facts["packing_efficiency"] = efficiency
        if efficiency >= LOW or batches < 3:
            return []
        title = f"micro-batches are only {efficiency:.0%} full"
        advice = "Raise train.per_device_train_batch_size or data.max_length, so that rows fit together better."
        return [Finding("packing_efficiency", Severity.INFO, title, advice)]

    def facts(self) -> dict[str, Any]:
        return self._facts
