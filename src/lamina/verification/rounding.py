"""Compares two computations of a gradient, and measures how much of a difference is only rounding.

Two correct computations differ by rounding, and how much depends on the model, the data and the dtype: in bfloat16 it
is several percent of the gradient of a deep network. So it is measured: the plain gradient is computed again with the
output of every linear layer perturbed by a rounding error (`adapters/moved.py`), in the forward and the backward, and
the distance to the first gradient is the effect of rounding alone. An actual error, such as a document that sees
another, changes a gradient by a large fraction of its norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lamina.methods.shared.base import PEFT_PREFIX
from lamina.verification.report import Measure

# A factor on the measured noise: both sides of a comparison round, and rounding also happens outside of linear layers.
NOISE_ALLOWED = 2.0

# Losses and gradients are summed in float32, whatever the dtype of the base.
_SUM_ROUNDING = 8 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Gradient:
    """The result of one computation.

    Attributes:
        losses: Sum of -log p, for each document or over all; their total is compared.
        tensors: Gradient of that total, by name of the adapter's tensor.
    """

    losses: list[float]
    tensors: dict[str, torch.Tensor]

    @property
    def loss(self) -> float:
        """The total over all documents."""
        return sum(self.losses)


@dataclass(frozen=True)
class Noise:
    """The relative effect of rounding alone on loss and gradient.

    Attributes:
        loss: Root mean square, over all draws, of the loss's relative difference.
        together: Norm of the difference of all gradients together, divided by their norm.
        worst: The largest such ratio of a single tensor.
        dtype: The dtype of the computation, such as `bfloat16`.
    """

    loss: float
    together: float
    worst: float
    dtype: str

    def measures(self, ours: Gradient, plain: Gradient) -> list[Measure]:
        """Compares two gradients that should differ by rounding only."""
        worst, difference = _worst(ours.tensors, plain.tensors)
        return [
            self._measure("loss", _ratio(abs(ours.loss - plain.loss), plain.loss), self.loss),
            self._measure("gradient, all tensors together", _together(ours, plain), self.together),
            self._measure(f"gradient of {worst}", difference, self.worst),
        ]

    def _measure(self, what: str, difference: float, noise: float) -> Measure:
        why = (
            f"{NOISE_ALLOWED:g} times the rounding noise of this model on this data in {self.dtype}, {noise:.1e}: "
            "measured by repeating the plain computation with every linear layer's output perturbed by a rounding error"
        )
        return Measure(what, difference, NOISE_ALLOWED * noise + _SUM_ROUNDING, why)


def rounding_noise(
    plain: Gradient, moved: Gradient, dtype: torch.dtype, more_losses: Sequence[Sequence[float]] = ()
) -> Noise:
    """Computes the noise from the plain gradient and one computed `with_rounding_moved`.

    Args:
        plain: The plain gradient.
        moved: The gradient with perturbed rounding.
        dtype: The dtype of the computation.
        more_losses: Losses by document from other draws of the perturbation. A loss is a single number, which one draw
            may happen not to change; over the many elements of a gradient, draws hardly differ.
    """
    # Absolute values: documents' errors may cancel in their sum by chance, and the tolerance must not be small by
    # chance.
    distances = [
        sum(abs(a - b) for a, b in zip(losses, plain.losses, strict=True)) for losses in (moved.losses, *more_losses)
    ]
    loss = _ratio(math.sqrt(sum(distance**2 for distance in distances) / len(distances)), plain.loss)
    return Noise(
        loss, _together(moved, plain), _worst(moved.tensors, plain.tensors)[1], str(dtype).removeprefix("torch.")
    )


def collect(tensors: Mapping[str, nn.Parameter], compute: Callable[[], list[float]]) -> Gradient:
    """Runs `compute`, which returns losses and accumulates gradients in `tensors`, and removes the gradients there."""
    for tensor in tensors.values():
        tensor.grad = None
    losses = compute()
    return Gradient(losses, taken_gradients(tensors))


def taken_gradients(tensors: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Removes the gradients from `tensors` and returns them; a missing gradient is zero."""
    taken = {}
    for name, tensor in tensors.items():
        taken[name.removeprefix(PEFT_PREFIX)] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
        tensor.grad = None
    return taken


def relative(ours: torch.Tensor, plain: torch.Tensor) -> float:
    """Computes ||ours - plain|| / ||plain|| in float32; 0 if both are zero."""
    return _ratio(float((ours.float() - plain.float()).norm()), float(plain.float().norm()))


def _worst(ours: Mapping[str, torch.Tensor], plain: Mapping[str, torch.Tensor]) -> tuple[str, float]:
    """Finds the tensor with the largest relative difference. A tiny tensor is compared relative to the largest one."""
    floor = 1e-3 * max(float(tensor.norm()) for tensor in plain.values())
    differences = {
        name: _ratio(float((ours[name] - tensor).norm()), max(float(tensor.norm()), floor))
        for name, tensor in plain.items()
    }
    # max() would ignore a NaN.
    return max(differences.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def _together(ours: Gradient, plain: Gradient) -> float:
    differences = [(ours.tensors[name] - tensor).norm() for name, tensor in plain.tensors.items()]
    sizes = [tensor.norm() for tensor in plain.tensors.values()]
    return _ratio(float(torch.stack(differences).norm()), float(torch.stack(sizes).norm()))


def _ratio(difference: float, size: float) -> float:
    if size == 0.0:
        return math.inf if difference else 0.0
    return difference / abs(size)
