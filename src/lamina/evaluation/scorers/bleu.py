"""`bleu`: BLEU of one answer (Papineni et al. 2002), by sacrebleu, from 0 to 100.

A mean of these is not the BLEU of a corpus, which counts n-grams over all rows: short answers have more weight here.
Orders that an answer is too short for are left out, as sacrebleu does for sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lamina.config.section import Section
from lamina.evaluation.scorers.base import Case
from lamina.packages import needed_package

TITLE = "BLEU"
RANGE = (0.0, 100.0)


class Options(Section):
    """Options of `bleu`."""

    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    """sacrebleu's tokenizer."""

    lowercase: bool = False
    """Whether upper and lower case are the same."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    library = needed_package("sacrebleu", "bleu", "type", "metrics")
    metric = library.BLEU(effective_order=True, tokenize=options.tokenize, lowercase=options.lowercase)
    return lambda case: min(100.0, metric.sentence_score(case.answer, [case.expected]).score)
