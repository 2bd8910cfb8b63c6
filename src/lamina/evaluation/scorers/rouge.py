"""`rouge`: ROUGE F1 of one answer (Lin 2004), by rouge-score, from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lamina.config.section import Section
from lamina.evaluation.scorers.base import Case
from lamina.packages import needed_package

TITLE = "ROUGE"
RANGE = (0.0, 1.0)


class Options(Section):
    """Options of `rouge`."""

    variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL"
    """Single words, pairs of words, or the longest common subsequence (by line with `rougeLsum`)."""

    stemmer: bool = False
    """Whether English words are cut to their stems."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer.

    Raises:
        ConfigError: rouge-score is not installed.
    """
    library = needed_package("rouge_score.rouge_scorer", "rouge", "type", "metrics")
    scorer = library.RougeScorer([options.variant], use_stemmer=options.stemmer)
    return lambda case: scorer.score(case.expected, case.answer)[options.variant].fmeasure
