"""What a check sees: one row of one file, as far as it could be read, understood and encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lamina.data.example import EncodedExample, Example
from lamina.data.read.rows import Fault


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
        place: Where it stands.
        side: `train` or `eval`.
        value: Its columns; None if it could not be read.
        fault: Why it could not be read, else None.
        remarks: What is odd about its bytes (see `lamina.data.read.rows.REMARKS`).
        example: What it means; None if it could not be read or does not fit its format.
        misfit: Why it does not fit the format; empty if it does.
        drop_reason: Why training would leave it out (a key of `lamina.data.report.DROP_REASONS`); else empty.
        trimmed: Whether turns after the last answer are left out.
        encoded: Its tokens, uncut; None without a model, or if the row is not used.
        refusal: Why the chat template does not render it; empty if it does.
    """

    place: Place
    side: str
    value: dict[str, Any] | None
    fault: Fault | None = None
    remarks: tuple[str, ...] = ()
    example: Example | None = None
    misfit: str = ""
    drop_reason: str = ""
    trimmed: bool = False
    encoded: EncodedExample | None = None
    refusal: str = ""
