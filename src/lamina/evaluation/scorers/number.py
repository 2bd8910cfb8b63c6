"""`number`: 1 where the answer's number is the reference's, else 0.

A number may have a sign, commas between thousands, a fraction and an exponent. Of the reference it is the one after
`####`, where it has that mark, and else the last; of the answer the last, unless the options say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field

from lamina.config.section import Section
from lamina.errors import DataError
from lamina.evaluation.scorers.base import Case

TITLE = "number"
RANGE = (0.0, 1.0)

_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+\u2212]?\.\d+")


class Options(Section):
    """Options of `number`."""

    take: Literal["first", "last"] = "last"
    """Which of several numbers in the answer counts."""

    relative: Annotated[float, Field(ge=0.0)] = 0.0
    """Allowed difference as a share of the reference."""

    absolute: Annotated[float, Field(ge=0.0)] = 1e-9
    """Allowed difference."""


OPTIONS = Options


def build(options: Options) -> Callable[[Case], float]:
    """Builds the scorer."""

    def score(case: Case) -> float:
        wanted = numbers(case.expected.rpartition("####")[2]) or numbers(case.expected)
        if not wanted:
            raise DataError(f"the reference {case.expected[:60]!r} holds no number. Fix: use another scorer for it.")
        answer = case.answer.rpartition("####")[2] if "####" in case.answer else case.answer
        found = numbers(answer)
        if not found:
            return 0.0
        value = found[0 if options.take == "first" else -1]
        return float(abs(value - wanted[-1]) <= max(options.absolute, options.relative * abs(wanted[-1])))

    return score


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order.

    >>> numbers("from -1,200.5 to 3e2, and 7.")
    [-1200.5, 300.0, 7.0]
    """
    return [float(each.replace(",", "").replace("\u2212", "-")) for each in _NUMBER.findall(text)]
