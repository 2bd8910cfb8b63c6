"""What the checks found: findings with a severity each, and facts that are neither good nor bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from lamina.checks.ledger import Ledger
from lamina.checks.row import Offender


class Severity(StrEnum):
    """How much a finding matters, worst first.

    An error makes training wrong or impossible, and `lamina train` stops on it. A warning is a matter of quality that
    is worth a look before training; an info is worth knowing.
    """

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """One thing that the checks found.

    Attributes:
        code: Its name in JSON, tests and docs.
        severity: How much it matters.
        title: What was found, for people.
        advice: What to do about it.
        count: Rows that it is about; 0 where it is about the data as a whole.
        share: Those as a share of the rows that were looked at; None where it is about the data as a whole.
        examples: Some of the rows.
    """

    code: str
    severity: Severity
    title: str
    advice: str
    count: int = 0
    share: float | None = None
    examples: Sequence[Offender] = ()


@dataclass
class CheckReport:
    """Everything that is known about the data.

    Attributes:
        findings: Worst first; among equals, those about more rows first.
        facts: Figures by name (`docs/data.md` explains them); plain data.
        files: What the driver says of each file: path, format, rows.
        ledger: One compact entry a row, with what a cleaned file leaves out; no part of the JSON.
    """

    findings: list[Finding]
    facts: dict[str, Any]
    ledger: Ledger
    files: list[dict[str, Any]] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """The findings that make training wrong or impossible."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]

    def find(self, code: str) -> Finding | None:
        """The finding with this code, if there is one."""
        return next((finding for finding in self.findings if finding.code == code), None)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "files": self.files,
            "severities": {severity.value: self.count(severity) for severity in Severity},
            "findings": [asdict(finding) | {"severity": finding.severity.value} for finding in self.findings],
            "facts": self.facts,
        }

    def count(self, severity: Severity) -> int:
        """How many findings are of a severity."""
        return sum(finding.severity is severity for finding in self.findings)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Worst first; among equals, those about more rows first."""
    rank = list(Severity)
    return sorted(findings, key=lambda finding: (rank.index(finding.severity), -finding.count, finding.code))
