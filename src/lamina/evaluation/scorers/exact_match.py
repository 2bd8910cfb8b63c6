"""`exact_match`: 1 where the answer is the expected one, white space at the ends aside, else 0."""

from __future__ import annotations

TITLE = "exact match"
RANGE = (0.0, 1.0)


def score(answer: str, expected: str) -> float:
    """Compares two texts.

    >>> score("Paris. ", "Paris."), score("paris.", "Paris.")
    (1.0, 0.0)
    """
    return float(answer.strip() == expected.strip())
