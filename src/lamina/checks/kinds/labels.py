"""Checks labels: those of unpaired preferences, and answers that are labels because there are only a few different
ones."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from lamina.checks.findings import Finding, Severity
from lamina.checks.kinds._base import BaseCheck
from lamina.checks.ledger import Ledger
from lamina.checks.private import mask
from lamina.checks.row import Offender
from lamina.checks.seen import Seen
from lamina.checks.settings import CheckSettings
from lamina.data.example import Kind

# Answers count as labels if there are at most this many different ones, none is longer than this, and each is frequent
# enough.
MOST_LABELS = 100
LONGEST_LABEL = 60
ROWS_A_LABEL = 5
FEWEST_ROWS = 50

# A label may be a typo for another label that is at least this many times as frequent.
SLIP_FACTOR = 20

# A class, or a side of unpaired preferences, with a smaller share than this is too small to learn from.
SMALL_SHARE = 0.1


class Check(BaseCheck):
    """Typos and imbalanced labels are warnings."""

    def __init__(self, settings: CheckSettings, ledger: Ledger) -> None:
        super().__init__(settings, ledger)
        self._feedback: Counter[bool] = Counter()
        self._answers: dict[str, _Answer] | None = {}
        self._rows = 0

    def see(self, seen: Seen) -> None:
        example = seen.usable
        if example is None or not seen.trains:
            return
        if example.label is not None:
            self._feedback[example.label] += 1
        if self._answers is None or example.kind is not Kind.CONVERSATION:
            return
        self._rows += 1
        answer = seen.answer.strip()
        if len(answer) > LONGEST_LABEL:
            self._answers = None
            return
        if answer not in self._answers:
            self._answers[answer] = _Answer(self.settings)
        self._answers[answer].add(seen)
        if len(self._answers) > 2 * MOST_LABELS:  # typos also count, before they are recognized
            self._answers = None

    def finish(self) -> list[Finding]:
        found = self._lopsided_feedback()
        labels = self._labels()
        if not labels:
            return found
        slips = [(label, right) for label in labels if (right := _slip_of(label, labels))]
        if slips:
            rows = sum(labels[label].count for label, _ in slips)
            examples = [
                Offender(offender.place, offender.excerpt, mask(f"{label!r}, but {right!r} is frequent"))
                for label, right in slips
                for offender in labels[label].examples
            ]
            found.append(
                Finding(
                    "label_slip",
                    Severity.WARNING,
                    "a rare label looks like a typo for a frequent one",
                    "Correct the label; otherwise the model learns both.",
                    rows,
                    rows / self._rows,
                    examples[: self.settings.examples],
                )
            )
        common = max(labels, key=lambda label: labels[label].count)
        share = labels[common].count / self._rows
        if share > 1 - SMALL_SHARE:
            title = f"{share:.0%} of the answers are {mask(common)!r}"
            advice = "Add examples of the other answers; here, always giving the same answer is nearly always correct."
            found.append(Finding("label_imbalance", Severity.WARNING, title, advice))
        return found

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        if self._feedback:
            facts["unpaired_preference"] = {"wanted": self._feedback[True], "unwanted": self._feedback[False]}
        labels = self._labels()
        if labels:
            common = sorted(labels, key=lambda label: -labels[label].count)[:MOST_LABELS]
            facts["labels"] = {mask(label): labels[label].count for label in common}
        return facts

    def _labels(self) -> dict[str, _Answer]:
        answers = self._answers or {}
        often = sum(answer.count >= ROWS_A_LABEL for answer in answers.values())
        few = often <= MOST_LABELS and self._rows >= FEWEST_ROWS and self._rows >= ROWS_A_LABEL * len(answers)
        return answers if few and often >= 1 and len(answers) > 1 else {}

    def _lopsided_feedback(self) -> list[Finding]:
        rows = self._feedback.total()
        small = min(self._feedback[True], self._feedback[False])
        if not rows or small >= SMALL_SHARE * rows:
            return []
        kind = "wanted" if self._feedback[True] == small else "unwanted"
        title = f"only {small} of {rows} labeled answers are {kind}"
        advice = "Add examples of that kind, or weight them (TRL's guide recommends 1:1 to 4:3 by weight)."
        return [Finding("unpaired_imbalance", Severity.WARNING, title, advice, small, small / rows)]


class _Answer:
    """The number of occurrences of an answer, and the first rows that have it."""

    def __init__(self, settings: CheckSettings) -> None:
        self.count = 0
        self.examples: list[Offender] = []
        self._most = min(settings.examples, SLIP_FACTOR)

    def add(self, seen: Seen) -> None:
        self.count += 1
        if len(self.examples) < self._most:
            self.examples.append(seen.offender())


def _slip_of(label: str, labels: dict[str, _Answer]) -> str:
    """Returns the frequent label that a rare one is a typo for, or an empty string."""
    common = [other for other in labels if labels[other].count >= SLIP_FACTOR * labels[label].count]
    return next((other for other in common if _reads_like(label, other)), "")


def _reads_like(label: str, other: str) -> bool:
    left, right = _letters(label), _letters(other)
    if left == right:
        return True
    digits = re.compile(r"\d")
    if digits.findall(label) != digits.findall(other) or min(len(left), len(right)) < 4:
        return False
    if left.endswith(right) or right.endswith(left):  # legal and illegal, happy and unhappy
        return False
    return _edits(left, right) <= (1 if min(len(left), len(right)) < 8 else 2)


def _letters(label: str) -> str:
    """Returns the label without case, punctuation and white space; unchanged if nothing would be left."""
    return re.sub(r"[\W_]+", "", label.casefold()) or label


def _edits(left: str, right: str) -> int:
    """Returns the number of letters to insert, delete, replace or swap with a neighbor (optimal string alignment)."""
    rows = [list(range(len(right) + 1))]
    for i, a in enumerate(left, start=1):
        row = [i]
        for j, b in enumerate(right, start=1):
            least = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and b == left[i - 2]:
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]
