"""`chrf`: chrF of one answer (Popovic 2015), by sacrebleu, from 0 to 100; with `word_order: 2` it is chrF++."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from lamina.config.section import Section
from lamina.evaluation.scorers.base import Case
from lamina.packages import needed_package

TITLE = "chrF"
RANGE = (0.0, 100.0)


class Options(Section):
    """Options of `chrf`."""

    word_order: Annotated[int, Field(ge=0, le=4)] = 0
    """Longest n-grams of words."""

    lowercase: bool = False
    """Whether upper and lower case are the same."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    library = needed_package("sacrebleu", "chrf", "type", "metrics")
    metric = library.CHRF(word_order=options.word_order, lowercase=options.lowercase)
    return lambda case: min(100.0, metric.sentence_score(case.answer, [case.expected]).score)
