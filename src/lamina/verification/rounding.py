"""How two computations of one gradient are compared, and how much of a difference is only rounding.

Two right ways of computing the same thing differ by rounding, and how far that carries depends on the model, the data
and the dtype: in bfloat16, it is some per cent of the gradient of a deep network. So it is measured: the plain gradient
is computed again with the result of every linear layer moved (`adapters/moved.py`), forward and backward, and the
distance to the first one is what rounding alone can do. Broken exactness, such as a document that sees another, changes
a gradient by a large part of itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lamina.methods.shared.base import PEFT_PREFIX
from lamina.verification.report import Measure

# Both sides of a comparison have their own rounding, and rounding also happens outside of linear layers.
NOISE_ALLOWED = 2.0

# Losses and gradients are summed in float32 whatever the base is held in.
_SUM_ROUNDING = 8 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Gradient:
    """What one way of computing gives.

    Attributes:
        losses: Sum of -log p, by document or over all documents; their total is what is compared.
        tensors: Gradient of that total, by the adapter tensor's name.
    """

    losses: list[float]
    tensors: dict[str, torch.Tensor]

    @property
    def loss(self) -> float:
        """Over all documents."""
        return sum(self.losses)


@dataclass(frozen=True)
class Noise:
    """What rounding alone does to a gradient, all relative.

    Attributes:
        loss: Of the loss: the root of the mean square of all draws.
        together: Norm of the difference of all gradients together, over their norm.
        worst: The same for the tensor where it is largest.
        dtype: Of the computation, such as `bfloat16`.
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
            "measured by computing the plain way again with every linear layer's result moved by a rounding error"
        )
        return Measure(what, difference, NOISE_ALLOWED * noise + _SUM_ROUNDING, why)


def rounding_noise(
    plain: Gradient, moved: Gradient, dtype: torch.dtype, more_losses: Sequence[Sequence[float]] = ()
) -> Noise:
    """The noise that lies between the plain gradient and the one computed `with_rounding_moved`.

    Args:
        plain: Nothing moved.
        moved: With roundings moved.
        dtype: Of the computation.
        more_losses: Losses by document with roundings moved otherwise. A loss is one number, which one draw may leave
            where it was; over the many numbers of a gradient draws hardly differ.
    """
    # Documents' errors may cancel in their sum by chance; a tolerance must not be small by chance.
    distances = [
        sum(abs(a - b) for a, b in zip(losses, plain.losses, strict=True)) for losses in (moved.losses, *more_losses)
    ]
    loss = _ratio(math.sqrt(sum(distance**2 for distance in distances) / len(distances)), plain.loss)
    return Noise(
        loss, _together(moved, plain), _worst(moved.tensors, plain.tensors)[1], str(dtype).removeprefix("torch.")
    )


def collect(tensors: Mapping[str, nn.Parameter], compute: Callable[[], list[float]]) -> Gradient:
    """Runs `compute`, which gives losses and leaves gradients in `tensors`, and takes the gradients away from there."""
    for tensor in tensors.values():
        tensor.grad = None
    losses = compute()
    return Gradient(losses, taken_gradients(tensors))


def taken_gradients(tensors: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The gradients in `tensors`, which have none afterwards; a missing one is zero."""
    taken = {}
    for name, tensor in tensors.items():
        taken[name.removeprefix(PEFT_PREFIX)] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
        tensor.grad = None
    return taken


def relative(ours: torch.Tensor, plain: torch.Tensor) -> float:
    """||ours - plain|| / ||plain||, in float32; 0 if both are zero."""
    return _ratio(float((ours.float() - plain.float()).norm()), float(plain.float().norm()))


def _worst(ours: Mapping[str, torch.Tensor], plain: Mapping[str, torch.Tensor]) -> tuple[str, float]:
    """The tensor with the largest relative difference. One that is next to nothing is measured against the rest."""
    floor = 1e-3 * max(float(tensor.norm()) for tensor in plain.values())
    differences = {
        name: _ratio(float((ours[name] - tensor).norm()), max(float(tensor.norm()), floor))
        for name, tensor in plain.items()
    }
    # max() would pass over a NaN.
    return max(differences.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


def _together(ours: Gradient, plain: Gradient) -> float:
    differences = [(ours.tensors[name] - tensor).norm() for name, tensor in plain.tensors.items()]
    sizes = [tensor.norm() for tensor in plain.tensors.values()]
    return _ratio(float(torch.stack(differences).norm()), float(torch.stack(sizes).norm()))


def _ratio(difference: float, size: float) -> float:
    if size == 0.0:
        return math.inf if difference else 0.0
    return difference / abs(size)
