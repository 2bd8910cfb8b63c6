"""`regex`: 1 where what a regular expression finds in the answer is the reference, else 0."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from lamina.config.section import Section
from lamina.errors import ConfigError, Problem
from lamina.evaluation.scorers.base import Case

TITLE = "regular expression"
RANGE = (0.0, 1.0)


class Options(Section):
    """Options of `regex`."""

    pattern: str
    """Python's regular expression; its first group is what was found, or without a group all of it."""

    take: Literal["first", "last"] = "first"
    """Which of several findings counts."""

    ignore_case: bool = False
    """Whether upper and lower case are the same, in the pattern and in the comparison."""

    expected: Literal["as_it_is", "extract"] = "as_it_is"
    """Whether the pattern is applied to the reference too."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer.

    Raises:
        ConfigError: The pattern is no regular expression.
    """
    try:
        pattern = re.compile(options.pattern, re.IGNORECASE if options.ignore_case else 0)
    except re.error as error:
        raise ConfigError(Problem("pattern", f"{options.pattern!r} is no regular expression ({error})")) from None

    def found(text: str) -> str | None:
        matches = list(pattern.finditer(text))
        if not matches:
            return None
        match = matches[0 if options.take == "first" else -1]
        group = next((each for each in match.groups() if each is not None), match.group())
        return _folded(group, options.ignore_case)

    def score(case: Case) -> float:
        wanted = found(case.expected) if options.expected == "extract" else _folded(case.expected, options.ignore_case)
        return float(wanted is not None and found(case.answer) == wanted)

    return score


def _folded(text: str, ignore_case: bool) -> str:
    stripped = text.strip()
    return stripped.casefold() if ignore_case else stripped
