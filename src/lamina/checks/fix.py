"""`--fix`: writes a cleaned copy of the rows, and a log with one line per change.

Reads the rows a second time. The first pass, `examine`, has stored a verdict on each row in its ledger.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lamina import files
from lamina.checks.findings import CheckReport
from lamina.checks.ledger import Verdict
from lamina.checks.private import scan
from lamina.checks.row import CheckedRow, Place
from lamina.checks.seen import Seen
from lamina.data.lost import MUCH
from lamina.errors import DataError


@dataclass
class FixLog:
    """What happened to the rows. `rows` is the sum of `written`, `left_alone` and all of `removed`.

    Attributes:
        path: The cleaned file.
        log: The file with one line per change.
        rows: Number of rows read.
        written: Number of rows in the cleaned file.
        left_alone: Number of rows for evaluation or replay, which are not written.
        removed: Number of rows removed, by reason.
        repaired: Number of rows repaired, by repair; a row may count for several.
        noted: Number of rows with secrets, which are not changed.
    """

    path: Path
    log: Path
    rows: int = 0
    written: int = 0
    left_alone: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    repaired: Counter[str] = field(default_factory=Counter)
    noted: int = 0

    def check(self) -> None:
        """Asserts that every row is accounted for."""
        assert self.rows == self.written + self.left_alone + self.removed.total(), f"rows lost: {self}"

    def as_json(self) -> dict[str, Any]:
        """Returns the log as plain data."""
        return vars(self) | {"path": str(self.path), "log": str(self.log)}

    def lines(self) -> list[str]:
        """Returns lines for display."""
        rows = self.rows - self.left_alone
        told = [f"{self.path}: {self.written:,} of {rows:,} rows written"]
        if self.removed.total() > MUCH * rows:
            told.append(f"  warning: {self.removed.total() / rows:.0%} of the rows are removed")
        told += [
            f"  {count:,} removed: {reason}{_MORE.get(reason, '')}" for reason, count in self.removed.most_common()
        ]
        told += [f"  {count:,} repaired: {what}" for what, count in self.repaired.most_common()]
        if self.noted:
            told.append(f"  {self.noted:,} contain secrets and are unchanged")
        return [*told, f"  every change is in {self.log}"]


# What the number of rows alone does not say.
_MORE = {"unreadable_rest": ", each with everything after it in its file"}


def log_of(out: Path) -> Path:
    """Returns the path of the log of changes for a cleaned file."""
    return out.with_name(f"{out.name}.log.jsonl")


def fix_rows(rows: Iterable[CheckedRow], report: CheckReport, out: Path) -> FixLog:
    """Writes the rows worth keeping to `out`, as JSON lines with their original columns.

    Removes rows that are unreadable, do not fit their format, are refused by the template, or are empty; exact and
    near-duplicates (except the first); and training rows that leak an evaluation prompt. Repairs byte-order marks,
    NULs, halves of surrogate pairs, NaN (which becomes null), and text that was decoded as Latin-1 if decoding it again
    as UTF-8 succeeds. Does not write rows of files that are only for evaluation.

    Args:
        rows: The same rows in the same order as for `examine`.
        report: The result of `examine`.
        out: Path of the cleaned file; the log goes next to it, as `NAME.log.jsonl`.

    Raises:
        DataError: `out` is one of the input files, or the rows are not those of the report.
        StorageError: A file cannot be written.
    """
    ledger = report.ledger
    if any(Path(name).resolve() == out.resolve() for name in ledger.files):
        raise DataError(f"{out}: this file is an input. Fix: write to another file.")
    log = FixLog(out, log_of(out))
    with files.new_text_file(out) as cleaned, files.new_text_file(log.log) as changes:

        def note(place: Place, action: str, reason: str, detail: str = "") -> None:
            line = {"file": place.file, "row": place.row, "line": place.line, "action": action, "reason": reason}
            changes.write(json.dumps(line | ({"detail": detail} if detail else {}), ensure_ascii=False) + "\n")

        for index, row in enumerate(rows):
            if index >= len(ledger) or row.place != ledger.place(index):
                raise DataError(
                    f"{row.place}: the rows have changed since they were checked. Fix: run the check again."
                )
            log.rows += 1
            if row.side == "replay" or row.place.file not in ledger.train_files:
                log.left_alone += 1
                continue
            verdict = ledger.verdict(index)
            if verdict is not Verdict.KEEP:
                reason = _reason(row, verdict)
                other = ledger.other(index)
                note(row.place, "removed", reason, str(other) if other else "")
                log.removed[reason] += 1
                continue
            line, repairs = repaired(row)
            for what in repairs:
                note(row.place, "repaired", what)
            secrets = [item.kind for item in scan(Seen(row, index).text) if item.secret]
            if secrets:
                note(row.place, "noted", "secret", ", ".join(dict.fromkeys(secrets)))
            cleaned.write(line + "\n")
            log.written += 1
            log.repaired.update(repairs)
            log.noted += bool(secrets)
        if log.rows != len(ledger):
            raise DataError(
                f"{out}: {len(ledger) - log.rows} of the checked rows are missing. Fix: run the check again."
            )
        log.check()
    return log


def _reason(row: CheckedRow, verdict: Verdict) -> str:
    """Returns why a row is removed: the code of a fault, a drop reason, or the verdict."""
    if verdict is Verdict.UNREADABLE and row.read.fault is not None:
        return row.read.fault.code
    return row.read.drop_reason if verdict is Verdict.LEFT_OUT else verdict.name.lower()


def repaired(row: CheckedRow) -> tuple[str, list[str]]:
    """Returns the repaired columns of a row as a line of JSON, and the repairs as codes of `REMARKS`.

    Only repairs what the reader remarked on, and what JSON cannot represent: non-finite numbers become null, and bytes,
    dates and the like become text (`made_text`; bytes that are not UTF-8 in base64).
    """
    done: dict[str, None] = {}

    def as_text(value: Any) -> str:
        done["made_text"] = None
        if not isinstance(value, bytes):
            return str(value)
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")

    remarks = row.read.remarks
    value = _repair(row.read.value, remarks, done) if remarks else row.read.value
    if "duplicate_key" in remarks:
        done["duplicate_key"] = None  # the reader has kept the last one
    try:
        line = json.dumps(value, ensure_ascii=False, default=as_text, allow_nan=False)
    except ValueError:  # nested in a table's cell, where the reader does not look
        line = json.dumps(_repair(value, remarks, done), ensure_ascii=False, default=as_text)
    return line, list(done)


def _repair(value: Any, remarks: tuple[str, ...], done: dict[str, None]) -> Any:
    if isinstance(value, dict):
        return {_repair(key, remarks, done): _repair(item, remarks, done) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_repair(item, remarks, done) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        done["not_a_number"] = None
        return None
    if not isinstance(value, str):
        return value
    for code in remarks:
        better = _REPAIRS[code](value) if code in _REPAIRS else value
        if better != value:
            done[code] = None
            value = better
    return value


def _decoded_again(text: str) -> str:
    """Decodes text that was UTF-8 but was decoded as Latin-1 or Windows-1252; returns it unchanged if that fails."""
    for encoding in ("latin-1", "cp1252"):
        with contextlib.suppress(UnicodeError):
            return text.encode(encoding).decode("utf-8")
    return text


_REPAIRS = {
    "byte_order_mark": lambda text: text.lstrip("\ufeff"),
    "nul": lambda text: text.replace("\0", ""),
    "half_a_character": lambda text: re.sub("[\ud800-\udfff]", "", text),
    "mojibake": _decoded_again,
}
