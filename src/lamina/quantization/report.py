"""How far quantized weights are from what they were, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of the weights, how many must be packed for a base to be called quantized.
ENOUGH = 0.5


@dataclass(frozen=True)
class Packing:
    """How much of a base is quantized. Weights are counted outside of embeddings and output head.

    Attributes:
        weights: Of the base.
        packed: Those in quantized modules.
        left: Those that stay as they are, by module, layers summed up, the largest first.
    """

    weights: int
    packed: int
    left: Mapping[str, int]

    @property
    def share(self) -> float:
        """Of the weights, those that are quantized."""
        return self.packed / max(self.weights, 1)

    def line(self) -> str:
        """A sentence for the terminal."""
        text = f"{self.share:.1%} of the weights outside of embeddings and head are packed"
        if self.share > _NEARLY_ALL:
            return text
        large = [
            f"{name} ({count / self.weights:.1%})" for name, count in self.left.items() if count > _MANY * self.weights
        ]
        return f"{text}; others stay in 16 or 32 bits: {', '.join(large)}"

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"weights": self.weights, "packed": self.packed, "left": dict(self.left)}


# Of the weights, so many in one place are worth naming. What is left of nearly all are norms, biases and the like.
_MANY = 0.005
_NEARLY_ALL = 0.98


@dataclass(frozen=True)
class RoundingReport:
    """The errors of a quantized base, in one.

    Attributes:
        errors: Module -> |W - Q| / |W| (Frobenius norms); with LoftQ then |W - Q - s B A| / |W| after each round.
        packing: How much of the base these modules are.
    """

    errors: Mapping[str, Sequence[float]]
    packing: Packing

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
        text = f"quantization error: {self.before:.2%} of the packed weights' norm"
        if self.after < self.before:
            text += f", {self.after:.2%} with LoftQ"
        return f"{text} (largest: {worst}, {self.errors[worst][0]:.2%}); {self.packing.line()}"

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        modules = {name: {"before": errors[0], "rounds": list(errors[1:])} for name, errors in self.errors.items()}
        return {"before": self.before, "after": self.after, "packing": self.packing.as_json(), "modules": modules}


def _mean(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
