"""How many answers are right, and how sure the share of right ones is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamina.evaluation.scorers.final_answer import is_right


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
        from lamina.evaluation.statistics import share_interval  # scipy takes a while to import

        return share_interval(self.correct, self.rows)


def score(answers: Sequence[str], expected: Sequence[str]) -> Score:
    """Counts the right answers."""
    right = [is_right(given, wanted) for given, wanted in zip(answers, expected, strict=True)]
    return Score(sum(right), len(right))
