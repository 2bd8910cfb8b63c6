"""`final_answer`: 1 where the answer says what the expected one does, else 0.

An expected answer that ends in `#### 42`, as GSM8K's do, asks for that last part alone: the model's answer is right if
what follows its own `####`, or else its last number, is the same. Any other expected answer must be met as a whole,
letter case, white space and marks at the ends aside.
"""

from __future__ import annotations

import re

TITLE = "final answer"
RANGE = (0.0, 1.0)

MARK = "####"

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_ENDS = " \t\n.,;:!?\"'`*"


def score(answer: str, expected: str) -> float:
    """`is_right` as a number."""
    return float(is_right(answer, expected))


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
