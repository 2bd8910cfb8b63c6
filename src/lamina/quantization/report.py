"""How far quantized weights are from what they were, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RoundingReport:
    """The errors of a quantized base, in one.

    Attributes:
        errors: Module -> |W - Q| / |W| (Frobenius norms); with LoftQ then |W - Q - s B A| / |W| after each round.
    """

    errors: Mapping[str, Sequence[float]]

    @property
    def before(self) -> float:
        """Root mean square over the modules, of plain quantization."""
        return _mean([errors[0] for errors in self.errors.values()])

    @property
    def after(self) -> float:
        """The same with LoftQ's best round, where it was used."""
        return _mean([errors[-1] for errors in self.errors.values()])

    def line(self) -> str:
        """A sentence for the terminal."""
        worst = max(self.errors, key=lambda name: self.errors[name][0])
        text = f"quantization error: {self.before:.2%} of the weights' norm"
        if self.after < self.before:
            text += f", {self.after:.2%} with LoftQ"
        return f"{text} (largest: {worst}, {self.errors[worst][0]:.2%})"

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        modules = {name: {"before": errors[0], "rounds": list(errors[1:])} for name, errors in self.errors.items()}
        return {"before": self.before, "after": self.after, "modules": modules}


def _mean(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
