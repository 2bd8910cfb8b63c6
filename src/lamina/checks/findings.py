"""The result of the checks: findings with a severity, and neutral facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from lamina.checks.ledger import Ledger
from lamina.checks.row import Offender


class Severity(StrEnum):
    """Severity of a finding, worst first.

    An error makes training wrong or impossible, and stops `lamina train`. A warning concerns quality and is worth a
    look before training. An info is worth knowing.
    """

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """A finding of a check.

    Attributes:
        code: Its identifier in JSON, tests and docs.
        severity: Its severity.
        title: What was found, for display.
        advice: What to do about it.
        count: Number of rows concerned; 0 if it concerns the data as a whole.
        share: Share of the rows that the check looked at; None if it concerns the data as a whole.
        examples: Some of the rows concerned.
    """

    code: str
    severity: Severity
    title: str
    advice: str
    count: int = 0
    share: float | None = None
    examples: Sequence[Offender] = ()


@dataclass(frozen=True)
class CheckedFile:
    """A file that was checked.

    Attributes:
        path: Its name, as given in the configuration.
        side: `train`, `replay` or `eval`.
        format: The format that its rows were parsed with; empty if that is not known.
        columns: Its mapped columns, by field.
        rows: Number of rows read.
        ignored_columns: Columns that the format does not read.
        skipped: Files beside it that were not read.
        notes: Messages to the user.
    """

    path: str
    side: str
    format: str
    columns: dict[str, str]
    rows: int
    ignored_columns: list[str]
    skipped: list[str]
    notes: list[str]


@dataclass
class CheckReport:
    """The result of all checks.

    Attributes:
        findings: Worst first; with equal severity, those that concern more rows first.
        facts: Figures by name (explained in `docs/data.md`), as plain data.
        files: The files, in the order in which they were read.
        ledger: One compact entry per row, with what a cleaned file leaves out. Not part of the JSON.
    """

    findings: list[Finding]
    facts: dict[str, Any]
    ledger: Ledger
    files: list[CheckedFile] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """The findings that make training wrong or impossible."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]

    def find(self, code: str) -> Finding | None:
        """Returns the finding with this code, or None."""
        return next((finding for finding in self.findings if finding.code == code), None)

    def as_json(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return {
            "files": [asdict(file) for file in self.files],
            "severities": {severity.value: self.count(severity) for severity in Severity},
            "findings": [asdict(finding) | {"severity": finding.severity.value} for finding in self.findings],
            "facts": self.facts,
        }

    def count(self, severity: Severity) -> int:
        """Returns the number of findings with a severity."""
        return sum(finding.severity is severity for finding in self.findings)


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Sorts findings: worst first; with equal severity, those that concern more rows first."""
    rank = list(Severity)
    return sorted(findings, key=lambda finding: (rank.index(finding.severity), -finding.count, finding.code))
