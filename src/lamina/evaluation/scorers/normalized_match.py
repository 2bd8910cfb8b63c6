"""`normalized_match`: 1 where answer and reference are the same but for case, white space, marks and Unicode forms."""

from __future__ import annotations

import unicodedata

TITLE = "normalized match"
RANGE = (0.0, 1.0)


def score(answer: str, expected: str) -> float:
    """Compares two texts.

    >>> score("  the ANSWER: Paris!", "The answer, Paris."), score("$5", "$50")
    (1.0, 0.0)
    """
    return float(normalized(answer) == normalized(expected))


def normalized(text: str) -> str:
    """A text in NFKC and folded case, without punctuation, and with single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(char).startswith("P") else char for char in folded)
    return " ".join(kept.split())
