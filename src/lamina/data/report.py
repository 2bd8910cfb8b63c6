"""The data report: what became of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lamina.data.example import EncodedExample

# Why a row is not trained on. The key is what the report counts under, the value what it says to people.
DROP_REASONS = {
    "no_assistant_turn": "there is no assistant turn to learn from",
    "empty_answer": "an answer is empty or has no text",
    "nothing_before_the_answer": "there is no turn before the answer",
    "longer_than_max_length": "the row has more tokens than data.max_length and data.overlong is 'drop'",
    "no_supervised_tokens": "no token of the row is in the loss (after cutting, if it was cut)",
    "after_max_rows": "the row comes after data.max_rows",
}


@dataclass
class FileReport:
    """What became of the rows of one file.

    Attributes:
        path: The file as the config names it.
        sha256: Digest of its bytes.
        format: The format its rows were read with.
        rows: Rows in the file.
        train_rows: Rows used for training.
        eval_rows: Rows used for evaluation.
        dropped: Row numbers, from 1, by reason (see `DROP_REASONS`).
        cut: Rows that lost their end, because data.overlong is 'cut'.
        trimmed: Rows that lost turns after the last answer.
        ignored_columns: Columns that the format does not read.
    """

    path: str
    sha256: str
    format: str
    rows: int
    train_rows: int = 0
    eval_rows: int = 0
    dropped: dict[str, list[int]] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    trimmed: list[int] = field(default_factory=list)
    ignored_columns: list[str] = field(default_factory=list)

    @property
    def rows_dropped(self) -> int:
        """Rows left out, for whatever reason."""
        return sum(map(len, self.dropped.values()))

    def drop(self, reason: str, row: int) -> None:
        """Records that a row is left out."""
        self.dropped.setdefault(reason, []).append(row)

    def check(self) -> None:
        """Asserts that every row is accounted for."""
        assert self.rows == self.train_rows + self.eval_rows + self.rows_dropped, f"rows lost in {self.path}: {self}"


@dataclass
class TokenReport:
    """Tokens of one side, training or evaluation."""

    examples: int
    tokens: int
    supervised_tokens: int
    shortest: int
    median: int
    longest: int

    @classmethod
    def of(cls, examples: Sequence[EncodedExample]) -> TokenReport:
        """Counts the tokens of `examples`."""
        lengths = np.array([len(example) for example in examples] or [0])
        return cls(
            examples=len(examples),
            tokens=int(lengths.sum()),
            supervised_tokens=sum(example.supervised_tokens for example in examples),
            shortest=int(lengths.min()),
            median=int(np.median(lengths)),
            longest=int(lengths.max()),
        )


@dataclass
class DataReport:
    """Everything a run says about its data; written to `data_report.json`.

    Attributes:
        files: One entry for each file read.
        train: Tokens of the training side.
        eval: Tokens of the evaluation side, or None.
        chat_template: `model`, or the name of the built-in template.
        stop_token: The token that answers end with.
        micro_batches: Micro-batches in an epoch.
        packing_efficiency: Real tokens as a share of the budget of an epoch's micro-batches; None without packing.
        notes: What else a user should know.
    """

    files: list[FileReport]
    train: TokenReport
    eval: TokenReport | None
    chat_template: str
    stop_token: str
    micro_batches: int = 0
    packing_efficiency: float | None = None
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people, a line each."""
        lines = []
        for file in self.files:
            parts = [f"{file.rows} rows ({file.format})"]
            parts += [f"{n} {side}" for n, side in ((file.train_rows, "train"), (file.eval_rows, "eval")) if n]
            lines.append(f"{Path(file.path).name}: " + ", ".join(parts))
            for reason, rows in file.dropped.items():
                lines.append(f"  dropped {len(rows)}: {DROP_REASONS[reason]} (rows {_some(rows)})")
            if file.cut:
                lines.append(f"  cut {len(file.cut)} to max_length (rows {_some(file.cut)})")
            if file.trimmed:
                lines.append(f"  {len(file.trimmed)} lost turns after the last answer (rows {_some(file.trimmed)})")
            if file.ignored_columns:
                lines.append(f"  columns not used: {', '.join(file.ignored_columns)}")
        for name, side in (("train", self.train), ("eval", self.eval)):
            if side is not None:
                share = side.supervised_tokens / max(1, side.tokens)
                lines.append(
                    f"{name}: {side.tokens:,} tokens, {side.supervised_tokens:,} supervised ({share:.0%}); "
                    f"example length {side.shortest} / {side.median} / {side.longest} (shortest, median, longest)"
                )
        if self.packing_efficiency is not None:
            lines.append(f"packing: {self.micro_batches} micro-batches, {self.packing_efficiency:.1%} full")
        return lines + [f"note: {note}" for note in self.notes]


def _some(rows: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, rows[:most]))
    return shown if len(rows) <= most else f"{shown}, ..."
