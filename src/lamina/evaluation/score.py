"""Whether an answer is right, and how sure the share of right ones is.

An expected answer that ends in `#### 42`, as GSM8K's do, asks for that last part alone: the model's answer is right if
what follows its own `####`, or else its last number, is the same. Any other expected answer must be met as a whole,
letter case, white space and marks at the ends apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MARK = "####"

# Two-sided 95% of a normal distribution.
_Z = 1.959963984540054

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_ENDS = " \t\n.,;:!?\"'`*"


@dataclass(frozen=True)
class Score:
    """How many answers were right.

    Attributes:
        correct: How many.
        rows: Of how many.
    """

    correct: int
    rows: int

    @property
    def share(self) -> float:
        """correct / rows."""
        return self.correct / self.rows

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the share (Wilson 1927), which holds for few rows and shares near 0 or 1 too.

        >>> low, high = Score(8, 10).interval
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
        """
        n, p = self.rows, self.share
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * (p * (1 - p) / n + _Z**2 / (4 * n**2)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)


def score(answers: Sequence[str], expected: Sequence[str]) -> Score:
    """Counts the right answers."""
    right = [is_right(given, wanted) for given, wanted in zip(answers, expected, strict=True)]
    return Score(sum(right), len(right))


def is_right(answer: str, expected: str) -> bool:
    """Whether `answer` says what `expected` does.

    >>> is_right("So she has 1,200 left.", "3 * 400 = 1200. #### 1200"), is_right("Paris.", "paris")
    (True, True)
    """
    if MARK not in expected:
        return _normal(answer) == _normal(expected)
    wanted = _final(expected.rpartition(MARK)[2])
    if MARK in answer:
        return _final(answer.rpartition(MARK)[2]) == wanted
    numbers = _NUMBER.findall(answer)
    return bool(numbers) and _final(numbers[-1]) == wanted


def _final(text: str) -> str:
    """What stands behind the mark: its number without commas and needless zeros, or else its words."""
    number = _NUMBER.search(text)
    if number is None:
        return _normal(text)
    plain = number.group().replace(",", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).strip(_ENDS)
