"""Reports how much of a base is quantized, and the quantization error of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The share of weights that must be packed for a base to count as quantized.
ENOUGH = 0.5


@dataclass(frozen=True)
class Packing:
    """How much of a base is quantized. Embeddings and output head are not counted.

    Attributes:
        weights: Number of weights in the base.
        packed: Number of weights in quantized modules.
        left: Number of weights that are not quantized, by module, summed over layers, largest first.
    """

    weights: int
    packed: int
    left: Mapping[str, int]

    @property
    def share(self) -> float:
        """The share of weights that are quantized."""
        return self.packed / max(self.weights, 1)

    def line(self) -> str:
        """Formats a sentence for the terminal."""
        text = f"{self.share:.1%} of the weights outside of embeddings and head are packed"
        if self.share > _NEARLY_ALL:
            return text
        large = [
            f"{name} ({count / self.weights:.1%})" for name, count in self.left.items() if count > _MANY * self.weights
        ]
        return f"{text}; others stay in 16 or 32 bits: {', '.join(large)}"

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        return {"weights": self.weights, "packed": self.packed, "left": dict(self.left)}


# Modules with more than this share of the weights are named; if nearly all weights are packed, the rest are norms,
# biases and the like, which are not named.
_MANY = 0.005
_NEARLY_ALL = 0.98


@dataclass(frozen=True)
class RoundingReport:
    """The quantization errors of a base.

    Attributes:
        errors: Module -> |W - Q| / |W| (Frobenius norms), and with LoftQ |W - Q - s B A| / |W| after each round.
        packing: How much of the base is quantized.
    """

    errors: Mapping[str, Sequence[float]]
    packing: Packing

    @property
    def before(self) -> float:
        """The root mean square of the modules' errors with plain quantization."""
        return _mean([errors[0] for errors in self.errors.values()])

    @property
    def after(self) -> float:
        """The root mean square of the modules' errors, with LoftQ's best round where it was used."""
        return _mean([errors[-1] for errors in self.errors.values()])

    def line(self) -> str:
        """Formats a sentence for the terminal."""
        worst = max(self.errors, key=lambda name: self.errors[name][0])
        text = f"quantization error: {self.before:.2%} of the packed weights' norm"
        if self.after < self.before:
            text += f", {self.after:.2%} with LoftQ"
        return f"{text} (largest: {worst}, {self.errors[worst][0]:.2%}); {self.packing.line()}"

    def as_json(self) -> dict[str, Any]:
        """Converts to plain data."""
        modules = {name: {"before": errors[0], "rounds": list(errors[1:])} for name, errors in self.errors.items()}
        return {"before": self.before, "after": self.after, "packing": self.packing.as_json(), "modules": modules}


def _mean(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
