"""What a check gets: one row of one file, as far as it could be read, parsed and encoded."""

from __future__ import annotations

from dataclasses import dataclass

from lamina.config import SourceConfig
from lamina.data.example import EncodedExample
from lamina.data.source import ReadRow


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a row.

    Attributes:
        file: Path as the user gave it.
        row: Number of the row, from 1.
        line: Line, from 1; 0 in files without lines.
    """

    file: str
    row: int
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else f"{self.file} row {self.row}"


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """A row as the checks see it.

    Attributes:
        file: Path as the user gave it.
        side: `train`, `eval` or `replay`.
        read: The row, as far as it could be read and parsed.
        encoded: Its tokens, not truncated; None without a model, or if the row is not used.
        refusal: Why the chat template refuses it; empty if it does not.
        rejected: For a preference, the tokens with the rejected answer.
        source: The source that the file belongs to.
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
        """Number of tokens; for a preference, of the longer sequence. 0 if unknown."""
        return max(len(side) if side is not None else 0 for side in (self.encoded, self.rejected))

    @property
    def place(self) -> Place:
        """The place of the row."""
        return Place(self.file, self.read.number, self.read.line)


@dataclass(frozen=True, slots=True)
class Offender:
    """An example row of a finding.

    Attributes:
        place: The place of the row.
        excerpt: Its start, or the text around the problem; secrets and personal data are masked.
        detail: What is wrong with this row.
    """

    place: Place
    excerpt: str
    detail: str = ""
