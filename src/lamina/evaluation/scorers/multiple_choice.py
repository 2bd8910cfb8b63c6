"""`multiple_choice`: 1 where the most likely of the row's choices is the right one, else 0.

As lm-eval does: `normalize: none` is its `acc`, where the most probable choice wins, `characters` its `acc_norm`, where
log-probabilities are divided by the choices' lengths in characters, and `bytes` its `acc_bytes`. Of equally likely
choices the first wins. The reference is the text of the right choice, or its number, counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from lamina.config.section import Section
from lamina.errors import DataError
from lamina.evaluation.scorers.base import Case, Choice

TITLE = "multiple choice"
RANGE = (0.0, 1.0)
NEEDS = "choices"


class Options(Section):
    """Options of `multiple_choice`."""

    normalize: Literal["none", "characters", "bytes"] = "none"
    """What log-probabilities are divided by."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer."""

    def likely(choice: Choice) -> float:
        size = {"none": 1, "characters": len(choice.text), "bytes": len(choice.text.encode())}[options.normalize]
        if not size:
            raise DataError("a choice is empty. Fix: give it some text.")
        return choice.likelihood.logprob / size

    def score(case: Case) -> float:
        right = right_choice(case)
        values = [likely(choice) for choice in case.choices]
        return float(values.index(max(values)) == right)

    return score


def right_choice(case: Case) -> int:
    """Which choice the reference names.

    Raises:
        DataError: None, or there are no choices.
    """
    texts = [choice.text.strip() for choice in case.choices]
    expected = case.expected.strip()
    if expected in texts:
        return texts.index(expected)
    if expected.isdecimal() and int(expected) < len(texts):
        return int(expected)
    shown = ", ".join(map(repr, texts)) or "nothing"
    raise DataError(f"the reference {expected!r} is none of the choices ({shown}). Fix: name one of them.")
