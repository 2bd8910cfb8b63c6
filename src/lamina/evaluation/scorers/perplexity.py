"""`perplexity`: of the reference after the prompt, exp(-log p / tokens), row by row; smaller is better.

Tokenizers cut a text into different tokens, so it compares models of one tokenizer alone. Means of perplexities belong
to their few largest; `log: true` gives -log p / tokens, the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from lamina.config.section import Section
from lamina.errors import DataError
from lamina.evaluation.scorers.base import Case

TITLE = "perplexity"
RANGE = (0.0, None)
LARGER_IS_BETTER = False
NEEDS = "likelihood"


class Options(Section):
    """Options of `perplexity`."""

    log: bool = False
    """Whether to give the loss instead of its exponential."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer."""

    def score(case: Case) -> float:
        found = case.likelihood
        if found is None or not found.tokens:
            raise DataError("the reference has no tokens. Fix: give it some text, or leave the row out.")
        loss = -found.logprob / found.tokens
        return loss if options.log else perplexity_of(loss)

    return score


def perplexity_of(loss: float) -> float:
    """exp(loss), for a loss in nats a token; of one beyond 700, where floats end, exp(700).

    >>> perplexity_of(0.0), perplexity_of(1e4) < math.inf
    (1.0, True)
    """
    return math.exp(min(loss, 700.0))
