"""`token_f1`: how many words answer and reference share, as the harmonic mean of precision and recall.

As for SQuAD (Rajpurkar et al. 2016): lower case, without punctuation and English articles.
"""

from __future__ import annotations

from collections import Counter

from lamina.evaluation.scorers.normalized_match import normalized

TITLE = "token F1"
RANGE = (0.0, 1.0)

_ARTICLES = {"a", "an", "the"}


def score(answer: str, expected: str) -> float:
    """Compares two texts.

    >>> score("the cat sat", "A cat sat down"), score("", "yes"), score("", "")
    (0.8, 0.0, 1.0)
    """
    given, wanted = words(answer), words(expected)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


def words(text: str) -> list[str]:
    """The words of a text that count."""
    return [word for word in normalized(text).split() if word not in _ARTICLES]
