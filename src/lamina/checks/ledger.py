"""One compact entry per row: its place, digests to compare it with others, and whether a cleaned file keeps it.

About 270 bytes per row, and 130 more if there is evaluation data, in plain arrays: checking a million rows takes the
memory of a small model.
"""

from __future__ import annotations

import hashlib
from array import array
from enum import IntEnum

import numpy as np

from lamina.checks.minhash import Signatures
from lamina.checks.row import Place
from lamina.checks.seen import Seen
from lamina.data.example import Example

EXCERPT_BYTES = 80

# Cannot occur in a text whose white space is normalized, so that white space at the ends of texts does not matter.
_SEPARATOR = " \0 "


class Verdict(IntEnum):
    """Why a cleaned file removes a row. If there are several reasons, the lowest counts."""

    UNREADABLE = 1
    MISFIT = 2
    TEMPLATE_REFUSAL = 3
    LEFT_OUT = 4
    EXACT_DUPLICATE = 5
    NEAR_DUPLICATE = 6
    EXACT_LEAK = 7
    NEAR_LEAK = 8
    KEEP = 255


class Ledger:
    """The entries, in the order of the rows.

    Attributes:
        signatures: MinHash signatures of the rows; complete after `finish`.
        files: Every file, in order of appearance.
        train_files: The files with training rows.
    """

    def __init__(self, has_eval: bool) -> None:
        self.signatures = Signatures(prompts=has_eval)
        self.files: list[str] = []
        self.train_files: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._file, self._row, self._line = array("I"), array("I"), array("I")
        self._group = array("B")
        self._digest, self._prompt = array("Q"), array("Q")
        self._verdict, self._other = array("B"), array("i")
        self._excerpts = bytearray()

    def __len__(self) -> int:
        return len(self._row)

    def add(self, seen: Seen) -> None:
        """Adds a row."""
        row, example = seen.row, seen.usable
        if row.file not in self._numbers:
            self._numbers[row.file] = len(self.files)
            self.files.append(row.file)
        self._file.append(self._numbers[row.file])
        if row.side == "train":
            self.train_files.add(row.file)
        self._row.append(row.read.number)
        self._line.append(row.read.line)
        self._verdict.append(_first_verdict(seen))
        self._other.append(-1)
        excerpt = seen.excerpt(length=EXCERPT_BYTES).encode("utf-8")
        self._excerpts += excerpt[:EXCERPT_BYTES].ljust(EXCERPT_BYTES, b"\0")
        if example is None:
            self.signatures.add("", "")
            self._group.append(0)
            self._digest.append(0)
            self._prompt.append(0)
            return
        kept_apart = (example.label is not None) + (example.label is True)
        self.signatures.add(seen.prompt, seen.reply)
        self._group.append(1 + kept_apart + 3 * (not seen.trains))
        self._digest.append(_digest(_identity(example)))
        self._prompt.append(_digest(_SEPARATOR.join(part for pair in example.prompt_key() for part in pair)))

    def finish(self) -> None:
        """Completes the signatures, after the last row."""
        self.signatures.finish()

    def place(self, index: int) -> Place:
        """Returns the place of a row."""
        return Place(self.files[self._file[index]], self._row[index], self._line[index])

    def excerpt(self, index: int) -> str:
        """Returns the start of a row, with everything private masked."""
        first = index * EXCERPT_BYTES
        return self._excerpts[first : first + EXCERPT_BYTES].rstrip(b"\0").decode("utf-8", "ignore")

    def verdict(self, index: int) -> Verdict:
        """Returns whether and why a cleaned file removes the row."""
        return Verdict(self._verdict[index])

    def other(self, index: int) -> Place | None:
        """Returns the row that a duplicate repeats, or the evaluation row that a row leaks."""
        return self.place(self._other[index]) if self._other[index] >= 0 else None

    def mark(self, rows: np.ndarray, others: np.ndarray, verdict: Verdict) -> None:
        """Records that each of `rows` is to be removed because of the row in `others`."""
        verdicts, known = np.frombuffer(self._verdict, np.uint8), np.frombuffer(self._other, np.int32)
        weaker = verdicts[rows] > verdict
        verdicts[rows[weaker]] = verdict
        known[rows[weaker]] = others[weaker]

    @property
    def groups(self) -> np.ndarray:
        """uint8, (rows,): 0 for unusable rows; only rows with the same side and label can be duplicates."""
        return np.frombuffer(self._group, np.uint8)

    @property
    def digests(self) -> np.ndarray:
        """uint64, (rows,): equal for rows with the same text, ignoring white space."""
        return np.frombuffer(self._digest, np.uint64)

    @property
    def prompts(self) -> np.ndarray:
        """uint64, (rows,): equal for rows with the same prompt, ignoring white space."""
        return np.frombuffer(self._prompt, np.uint64)

    @property
    def train_rows(self) -> np.ndarray:
        """Indices of the usable rows of the training side."""
        return np.flatnonzero((self.groups >= 1) & (self.groups <= 3))

    @property
    def eval_rows(self) -> np.ndarray:
        """Indices of the usable rows of the evaluation side."""
        return np.flatnonzero(self.groups >= 4)


def _first_verdict(seen: Seen) -> Verdict:
    if seen.row.read.fault is not None:
        return Verdict.UNREADABLE
    if seen.empty or seen.row.read.drop_reason == "after_max_rows":
        return Verdict.LEFT_OUT
    if seen.example is None:
        return Verdict.MISFIT
    return Verdict.TEMPLATE_REFUSAL if seen.row.refusal else Verdict.KEEP


def _identity(example: Example) -> str:
    turns = (part for message in (*example.messages, *example.rejected) for part in (message.role, message.words()))
    tools = str(example.tools) if example.tools else ""
    return _SEPARATOR.join((example.kind, str(example.label), example.text, tools, *turns))


def _digest(text: str) -> int:
    words = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
