"""Counts the tokens of rows, and finds rows longer than `max_length`."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck, Tally
from lamina.checks.kinds._spread import spread_of
from lamina.checks.ledger import Ledger
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings

_WHAT = {
    "drop": "is dropped",
    "cut": "is truncated",
    "split": "is split into several examples",
}

# A smaller share of overlong rows than this is normal: a single huge row should not determine memory use.
FEW = 0.01


class Check(BaseCheck):
    """Overlong rows are a warning if more than a few are dropped or truncated, and otherwise an info."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._lengths = {"train": array("I"), "eval": array("I")}
        self._long = {fate: Tally(settings) for fate in _WHAT}
        self._rows = 0

    def see(self, seen: Seen) -> None:
        tokens = seen.row.tokens
        if tokens:
            self._lengths["train" if seen.trains else "eval"].append(tokens)
        too_long = tokens > self.settings.max_length or seen.row.read.drop_reason == "longer_than_max_length"
        self._rows += tokens > 0 or too_long
        if too_long:
            fate = self.settings.fate(seen.example)
            self._long[fate].add(seen, f"{tokens:,} tokens" if tokens else "")

    def finish(self) -> list[Finding]:
        lengths = np.frombuffer(self._lengths["train"], np.uint32)
        positions = self.settings.positions
        advice = "Raise data.max_length, or change data.overlong."
        if positions is not None and self.settings.max_length >= positions:
            advice = f"Change data.overlong, or shorten the rows; the model has {positions:,} positions."
        if len(lengths):
            advice += f" 99% of the rows have at most {int(np.percentile(lengths, 99)):,} tokens."
        findings: list[Finding] = []
        for fate, long in self._long.items():
            few = fate == "split" or long.count <= FEW * self._rows
            findings += long.finding(
                "longer_than_max_length",
                Severity.INFO if few else Severity.WARNING,
                f"the row is longer than {self.settings.max_length:,} tokens and {_WHAT[fate]}",
                advice,
                self._rows,
            )
        return findings

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for side, held in self._lengths.items():
            lengths = np.frombuffer(held, np.uint32)
            if len(lengths):
                facts[f"{side}_tokens"] = {"tokens": int(lengths.sum()), **spread_of(lengths)}
        if facts:
            facts["longer_than_max_length"] = {fate: long.count for fate, long in self._long.items() if long.count}
        return facts
