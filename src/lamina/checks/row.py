"""What a check sees: one row of one file, as far as it could be read, understood and encoded."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.config import SourceConfig
from lamina.data.example import EncodedExample
from lamina.data.source import ReadRow


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands.

    Attributes:
        file: Path as the user named it.
        row: Counted from 1.
        line: Counted from 1; 0 in files without lines.
    """

    file: str
    row: int
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else f"{self.file} row {self.row}"


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """One row as the checks see it.

    Attributes:
        file: Path as the user named it.
        side: `train`, `eval` or `replay`.
        read: What could be read and understood of it.
        encoded: Its tokens, uncut; None without a model, or if the row is not used.
        refusal: Why the chat template does not render it; empty if it does.
        rejected: Of a preference: the tokens with the rejected answer.
        source: Where the configuration names the file.
    """

    file: str
    side: str
    read: ReadRow
    encoded: EncodedExample | None = None
    refusal: str = ""
    rejected: EncodedExample | None = None
    source: SourceConfig | None = None

    @property
    def tokens(self) -> int:
        """How many tokens it has; of a preference, with the longer answer. 0 where they are not known."""
        return max(len(side) if side is not None else 0 for side in (self.encoded, self.rejected))

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.file, self.read.number, self.read.line)


@dataclass(frozen=True, slots=True)
class Offender:
    """A row that a finding is about.

    Attributes:
        place: Where it stands.
        excerpt: How it begins, or the text around the matter; secrets and personal data are masked.
        detail: What it is about this row.
    """

    place: Place
    excerpt: str
    detail: str = ""
