"""The results of `verify`: a `Check` per line, made of `Measure`s, and the `Verification` as a whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from lamina.runs.events import Event


class Skipped(Exception):
    """A check that does not apply to this configuration; the message says why."""


@dataclass(frozen=True)
class Measure:
    """One difference and its tolerance.

    Attributes:
        what: What differs, such as `loss` or `gradient of model.layers.3.mlp.up_proj.lora_A.weight`.
        difference: How much it differs; not finite if either side was not.
        tolerance: The largest difference allowed.
        why: Where the tolerance comes from.
    """

    what: str
    difference: float
    tolerance: float
    why: str

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance

    @property
    def severity(self) -> float:
        """The difference in units of the tolerance, for sorting; the worst is largest."""
        if math.isnan(self.difference):
            return math.inf
        if self.difference == 0.0:
            return 0.0
        return self.difference / self.tolerance if self.tolerance else math.inf


@dataclass(frozen=True)
class Check:
    """One line of a verification.

    Attributes:
        name: Such as `packed = one at a time`.
        compared: What was compared with what.
        worst: The compared quantity that is closest to its tolerance, or farthest beyond it; empty if skipped.
        difference: The difference of that quantity; None if nothing could be compared.
        tolerance: The tolerance of that quantity.
        why: The reason for the tolerance; for a skipped check, why it was skipped; for one that failed, the error.
        passed: Whether everything compared is within its tolerance; None for a skipped check.
    """

    name: str
    compared: str
    worst: str
    difference: float | None
    tolerance: float | None
    why: str
    passed: bool | None

    @classmethod
    def of(cls, name: str, compared: str, measures: Sequence[Measure]) -> Check:
        """Builds a check from its measures: all must pass, and the worst one is shown."""
        worst = max(measures, key=lambda measure: measure.severity)
        passed = all(measure.passed for measure in measures)
        return cls(name, compared, worst.what, worst.difference, worst.tolerance, worst.why, passed)

    @classmethod
    def ended(cls, name: str, compared: str, why: str, passed: bool | None) -> Check:
        """Builds a check without measures: skipped (`passed` None), or failed with an error."""
        return cls(name, compared, "", None, None, why, passed)

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data; a difference that is not finite becomes null."""
        value = asdict(self)
        if self.difference is not None and not math.isfinite(self.difference):
            value["difference"] = None
        return value


@dataclass(frozen=True, kw_only=True)
class VerifyCheck(Event):
    """A check has been made; `step` counts them.

    Attributes:
        check: It.
    """

    kind: ClassVar[str] = "check"

    check: Check

    def as_json(self) -> dict[str, Any]:
        return {"event": self.kind, "step": self.step, "time": self.time, **self.check.as_json()}


@dataclass(frozen=True)
class Verification:
    """The result of `verify`.

    Attributes:
        model: What was verified.
        method: The method's name.
        dtype: The dtype of the base.
        documents: Number of documents that were compared on.
        tokens: Number of their tokens.
        checks: The checks in order.
        seconds: Duration in seconds.
    """

    model: str
    method: str
    dtype: str
    documents: int
    tokens: int
    checks: list[Check]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {
            "passed": self.passed,
            **{key: value for key, value in asdict(self).items() if key != "checks"},
            "checks": [check.as_json() for check in self.checks],
        }
