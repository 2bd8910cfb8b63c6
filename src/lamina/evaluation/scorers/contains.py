"""`contains`: 1 where the answer contains the reference, or one of the given words, else 0."""

from __future__ import annotations

from collections.abc import Callable

from lamina.config.section import Section
from lamina.errors import DataError
from lamina.evaluation.scorers.base import Case

TITLE = "contains"
RANGE = (0.0, 1.0)


class Options(Section):
    """Options of `contains`."""

    any_of: list[str] | None = None
    """Texts of which one is enough, instead of the row's reference."""

    ignore_case: bool = True
    """Whether upper and lower case are the same."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer."""
    fold: Callable[[str], str] = str.casefold if options.ignore_case else str

    def score(case: Case) -> float:
        wanted = [case.expected.strip()] if options.any_of is None else options.any_of
        if "" in wanted:
            raise DataError("the text to look for is empty, and every answer contains it. Fix: give another.")
        answer = fold(case.answer)
        return float(any(fold(text) in answer for text in wanted))

    return score
