"""Right answers, and how sure their share is."""

from __future__ import annotations

import pytest

from lamina.evaluation.score import Score, score
from lamina.evaluation.scorers.final_answer import is_right


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("She has 3 left. #### 3", "4 - 1 = 3\n#### 3", True),
        ("4 - 1 = 3", "4 - 1 = 3\n#### 3", True),
        ("The answer is 3, not 4", "#### 3", False),
        ("#### 3 apples, and 5 more", "#### 3", True),
        ("It costs $1,200.50 in all.", "#### 1200.5", True),
        ("it is 18.00", "#### 18", True),
        ("minus -7", "#### -7", True),
        ("7", "#### -7", False),
        ("no number at all", "#### 3", False),
        ("#### yes", "so #### Yes.", True),
        ("Paris.", "paris", True),
        ("Paris,  France", "paris, france", True),
        ("Paris, 3", "paris", False),
        ("", "paris", False),
    ],
)
def test_what_is_right(answer: str, expected: str, right: bool) -> None:
    assert is_right(answer, expected) == right


def test_the_score_counts_pairs() -> None:
    assert score(["a", "B", "c"], ["A", "b", "d"]) == Score(2, 3)


@pytest.mark.parametrize(
    ("correct", "rows", "low", "high"),
    # From R's binom.confint(..., method = "wilson").
    [(0, 10, 0.0, 0.2775328), (5, 10, 0.2365931, 0.7634069), (10, 10, 0.7224672, 1.0), (81, 263, 0.2553012, 0.3662271)],
)
def test_wilsons_interval(correct: int, rows: int, low: float, high: float) -> None:
    assert Score(correct, rows).interval == pytest.approx((low, high), abs=2e-4)
