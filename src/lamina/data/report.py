"""The data report: what happened to every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# Why a row is not trained on: key in the report -> message.
DROP_REASONS = {
    "no_assistant_turn": "there is no assistant turn",
    "empty_answer": "an answer is empty or has no text",
    "empty_text": "the document is empty",
    "same_answers": "the chosen and the rejected answer are the same",
    "prompt_not_shared": "as tokens, the chosen and the rejected answer do not follow the same prompt",
    "answer_changed": "with the teacher's prompt before it, the answer has other tokens",
    "nothing_before_the_answer": "there is no turn before the answer",
    "longer_than_max_length": "the row has more tokens than data.max_length and data.overlong is 'drop'",
    "no_supervised_tokens": "no token of the row is in the loss (after truncation, if it was truncated)",
    "after_max_rows": "the row comes after data.max_rows",
    "not_drawn": "the source's weight is below 1 and the row was not drawn",
    "beyond_replay_share": "data.replay.share is reached without the row",
}

# Rows dropped for these reasons are good rows: the configuration excludes them.
CHOSEN_REASONS = frozenset({"after_max_rows", "not_drawn", "beyond_replay_share"})

# Maximum number of rows to list per reason; the count includes all.
_LISTED = 100


@dataclass
class RowList:
    """Rows that had the same thing happen to them.

    Attributes:
        count: Number of rows.
        first: Numbers of the first rows, from 1.
    """

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        """Adds a row."""
        self.count += 1
        if len(self.first) < _LISTED:
            self.first.append(row)

    def extend(self, rows: np.ndarray) -> None:
        """Adds several rows, in order."""
        self.count += len(rows)
        self.first += [int(row) for row in rows[: _LISTED - len(self.first)]]

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.first[:8]))
        return shown if self.count <= 8 else f"{shown}, ..."


@dataclass
class FileReport:
    """What happened to the rows of one file.

    Attributes:
        path: The file, as given in the configuration.
        sha256: Digest of its bytes.
        format: The format its rows were parsed with.
        rows: Number of rows in the file.
        role: `train`, `eval` or `replay`.
        weight: How often its training rows are seen per epoch.
        train_rows: Number of rows used for training.
        eval_rows: Number of rows used for evaluation.
        train_tokens: Tokens per epoch, including repeats.
        dropped: Dropped rows, by reason (see `DROP_REASONS`).
        cut: Rows that were truncated, because data.overlong is 'cut'.
        split: Rows that were divided into several examples, because they are longer than data.max_length.
        trimmed: Rows whose turns after the last answer were removed.
        not_asked: Rows with earlier answers that are in the context but not in the loss, because the chat template
            shows them in another form than after their generation prompt.
        ignored_columns: Columns that the format does not read.
    """

    path: str
    sha256: str
    format: str
    rows: int
    role: str = "train"
    weight: float = 1.0
    train_rows: int = 0
    eval_rows: int = 0
    train_tokens: int = 0
    dropped: dict[str, RowList] = field(default_factory=dict)
    cut: RowList = field(default_factory=RowList)
    split: RowList = field(default_factory=RowList)
    trimmed: RowList = field(default_factory=RowList)
    not_asked: RowList = field(default_factory=RowList)
    ignored_columns: list[str] = field(default_factory=list)

    @property
    def rows_dropped(self) -> int:
        """Number of dropped rows, for any reason."""
        return sum(rows.count for rows in self.dropped.values())

    def counts_dropped(self) -> dict[str, int]:
        """Returns the number of dropped rows, by reason."""
        return {reason: rows.count for reason, rows in self.dropped.items()}

    def drop(self, reason: str, row: int) -> None:
        """Records a dropped row."""
        self.dropped.setdefault(reason, RowList()).add(row)

    def drop_all(self, reason: str, rows: np.ndarray) -> None:
        """Records several dropped rows."""
        if len(rows):
            self.dropped.setdefault(reason, RowList()).extend(rows)

    def settle(self) -> None:
        """Sorts the listed rows, and asserts that every row is accounted for."""
        for rows in (self.cut, self.split, self.trimmed, self.not_asked, *self.dropped.values()):
            rows.first.sort()
        assert self.rows == self.train_rows + self.eval_rows + self.rows_dropped, f"rows lost in {self.path}: {self}"

    def lines(self, name: str = "") -> list[str]:
        """Returns lines for display. `name` replaces the file's name."""
        parts = [f"{self.rows} rows ({self.format})"]
        parts += [f"{n} {side}" for n, side in ((self.train_rows, "train"), (self.eval_rows, "eval")) if n]
        if self.role == "replay":
            parts.append("replayed to reduce forgetting")
        if self.weight != 1.0:
            parts.append(f"weight {self.weight:g}")
        lines = [f"{name or Path(self.path).name}: " + ", ".join(parts)]
        for reason, rows in self.dropped.items():
            lines.append(f"  dropped {rows.count}: {DROP_REASONS[reason]} (rows {rows})")
        if self.cut.count:
            lines.append(f"  truncated {self.cut.count} to max_length (rows {self.cut})")
        if self.split.count:
            lines.append(f"  split {self.split.count} that are longer than max_length (rows {self.split})")
        if self.trimmed.count:
            lines.append(f"  removed turns after the last answer of {self.trimmed.count} (rows {self.trimmed})")
        if self.not_asked.count:
            lines.append(
                f"  {self.not_asked.count} have earlier answers that are not in the loss, because the chat template "
                f"shows them in another form than after their generation prompt (rows {self.not_asked}); as the "
                "last answers of separate rows, they would be"
            )
        if self.ignored_columns:
            lines.append(f"  columns not used: {shown_columns(self.ignored_columns)}")
        return lines


def shown_columns(names: Sequence[str]) -> str:
    """Returns the names of columns for display; pandas writes its index under an empty name."""
    return ", ".join(name or "(a column without a name)" for name in names)


@dataclass
class TokenReport:
    """Token counts of the training or the evaluation side.

    Attributes:
        examples: Number of sequences; a row that is split or repeated has several.
        tokens: Total number of tokens.
        supervised_tokens: Number of tokens in the loss.
        shortest: Tokens in the shortest example.
        median: Tokens in the median example.
        longest: Tokens in the longest example.
    """

    examples: int
    tokens: int
    supervised_tokens: int
    shortest: int
    median: int
    longest: int

    @classmethod
    def of(cls, lengths: np.ndarray, supervised: np.ndarray) -> TokenReport:
        """Counts tokens.

        Args:
            lengths: Tokens in each example, shape (examples,).
            supervised: Tokens in the loss in each example, shape (examples,).
        """
        lengths = lengths if len(lengths) else np.zeros(1, dtype=np.int64)
        return cls(
            examples=len(supervised),
            tokens=int(lengths.sum()),
            supervised_tokens=int(supervised.sum()),
            shortest=int(lengths.min()),
            median=int(np.median(lengths)),
            longest=int(lengths.max()),
        )


@dataclass
class DataReport:
    """Everything that a run reports about its data; written to `data_report.json`.

    Attributes:
        files: One entry per file.
        train: Token counts of the training side.
        eval: Token counts of the evaluation side, or None.
        chat_template: `model`, the name of a built-in template, or the path of a file.
        stop_token: The token that answers end with.
        micro_batches: Micro-batches per epoch.
        packing_efficiency: Tokens as a share of the token budget of an epoch's micro-batches; None without packing.
        notes: Other messages to the user.
        warnings: What a user should look at before training.
    """

    files: list[FileReport]
    train: TokenReport
    eval: TokenReport | None
    chat_template: str
    stop_token: str
    micro_batches: int = 0
    packing_efficiency: float | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Returns lines for display."""
        names = self._names()
        lines = [f"warning: {warning}" for warning in self.warnings]
        lines += [line for file, name in zip(self.files, names, strict=True) for line in file.lines(name)]
        for name, side in (("train", self.train), ("eval", self.eval)):
            if side is not None:
                share = side.supervised_tokens / max(1, side.tokens)
                lines.append(
                    f"{name}: {side.tokens:,} tokens, {side.supervised_tokens:,} supervised ({share:.0%}); "
                    f"example length {side.shortest} / {side.median} / {side.longest} (shortest, median, longest)"
                )
        trained = [(file, name) for file, name in zip(self.files, names, strict=True) if file.train_tokens]
        if len(trained) > 1:
            total = sum(file.train_tokens for file, _ in trained)
            shares = (f"{name} {file.train_tokens / total:.0%}" for file, name in trained)
            lines.append(f"mix of training tokens: {', '.join(shares)}")
        if self.packing_efficiency is not None:
            lines.append(f"packing: {self.micro_batches} micro-batches, {self.packing_efficiency:.1%} full")
        return lines + [f"note: {note}" for note in self.notes]

    def _names(self) -> list[str]:
        """Returns each file's name for display: its base name, or its full path if the base name is not unique."""
        short = [Path(file.path).name for file in self.files]
        times = Counter(short)
        return [name if times[name] == 1 else file.path for file, name in zip(self.files, short, strict=True)]
