"""`length`: how long the answer is, in words or characters. Neither more nor less is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lamina.config.section import Section
from lamina.evaluation.scorers.base import Case

TITLE = "length"
RANGE = (0.0, None)
LARGER_IS_BETTER = None


class Options(Section):
    """Options of `length`."""

    unit: Literal["words", "characters"] = "words"
    """What is counted; words are what white space parts."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer."""
    if options.unit == "words":
        return lambda case: float(len(case.answer.split()))
    return lambda case: float(len(case.answer))
