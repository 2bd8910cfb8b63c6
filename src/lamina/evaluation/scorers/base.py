"""What a scorer sees of a row, and what it may say of itself; see the package for the whole contract."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lamina.errors import DataError, LaminaError

# What is computed of a row before it is scored: an answer is generated, or the reference or each of the choices gets
# its log-likelihood.
Needs = Literal["answer", "likelihood", "choices"]


@dataclass(frozen=True)
class Likelihood:
    """What a model thinks of a text that follows a prompt.

    Attributes:
        logprob: Its log-probability, over all its tokens.
        is_greedy: Whether the model would have written it, taking the most probable token each time.
        tokens: How many it has.
    """

    logprob: float
    is_greedy: bool
    tokens: int


@dataclass(frozen=True)
class Choice:
    """One of the answers that a row offers.

    Attributes:
        text: The answer.
        likelihood: What the model thinks of it.
    """

    text: str
    likelihood: Likelihood


@dataclass(frozen=True)
class Case:
    """What there is of a row when it is scored.

    Attributes:
        answer: What was generated.
        expected: The reference.
        row: The data row, with all its columns.
        number: Of the row in its file, counted from 1; None if it has none.
        likelihood: Of the reference, where a scorer needs it.
        choices: With their likelihoods, where a scorer needs them.
    """

    answer: str = ""
    expected: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    number: int | None = None
    likelihood: Likelihood | None = None
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Scorer:
    """A way of scoring, with its options.

    Attributes:
        name: The metric's name in results: the task's own `name` for it, or else `kind`.
        kind: The file's name, or `FILE.py:NAME`.
        title: Its name in prose.
        function: From a case to a number.
        larger_is_better: None where neither is, as for a length.
        low, high: The range of its numbers; None where that end is open.
        needs: What it needs of a row.
        options: As plain data.
        source: Digest of a Python file of the user's; empty for scorers that are installed.
    """

    name: str
    kind: str
    title: str
    function: Callable[[Case], float]
    larger_is_better: bool | None = True
    low: float | None = None
    high: float | None = None
    needs: Needs = "answer"
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of what its numbers depend on."""
        facts = {"kind": self.kind, "options": dict(self.options), "source": self.source}
        return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def bounded(self) -> bool | None:
        """Whether its numbers cannot leave 0 to 1; None where it has no range that would say so."""
        return None if (self.low, self.high) == (None, None) else (self.low, self.high) == (0.0, 1.0)

    def score(self, case: Case) -> float:
        """Scores a row.

        Raises:
            DataError: The scorer raises, or gives something else than a finite number in its range; the error names
                the row and the scorer.
        """
        where = f"row {case.number}" if case.number is not None else "a row"
        try:
            value = self.function(case)
        except LaminaError as error:
            raise DataError(f"{where}: scorer {self.name}: {error}") from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{where}: scorer {self.name} raised {reason}. Fix: correct the scorer, or the row."
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if not math.isfinite(number) or not low <= number <= high:
            is_open = self.low is None and self.high is None
            allowed = "a finite number" if is_open else f"a number from {_end(self.low)} to {_end(self.high)}"
            raise DataError(
                f"{where}: scorer {self.name} gave {value!r}, which is not {allowed}. Fix: correct the scorer, or the "
                "row."
            )
        return number


def _end(value: float | None) -> str:
    return "any" if value is None else f"{value:g}"
